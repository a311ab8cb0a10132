"""Training end to end on the CPU: learning, resuming to the bit, non-finite losses, regularisers."""

import json

import pytest
import torch

from conftest import DEVICES, advance, no_host_waits
from nerf import checkpoint
from nerf.errors import UserError
from nerf.step import StepNumbers

MINING = {"baseline": [], "hsm": ["--hsm"], "paper": ["--hsm", "--hsm_draw", "multinomial"], "poisson": ["--hsm", "--hsm_draw", "poisson", "--hsm_alpha", "1"]}


@pytest.mark.parametrize("flags", MINING.values(), ids=MINING)
def test_learns_the_demo_scene(make_trainer, flags):
    trainer = make_trainer(*flags)
    before = trainer.evaluate(None)["psnr"]
    numbers = advance(trainer, 400)
    after = trainer.evaluate(None)["psnr"]
    assert after > max(16.5, before + 2)  # dB, held-out
    assert 0.8 * 4096 < numbers.samples <= 4096  # the ray count keeps the samples near the capacity
    assert numbers.bad_step == -1
    if flags:
        assert numbers.hard < 0.5 * numbers.samples
        assert trainer.step.miner.room < 0.55 * 4096


@pytest.mark.parametrize("flags", [[], ["--hsm", "--lr_schedule", "exponential", "--iters", "1000", "--max_training_time", "1000"]], ids=["baseline", "hsm"])
def test_resumes_to_the_bit(make_trainer, tmp_path, flags):
    straight = make_trainer(*flags, folder=tmp_path / "straight")
    advance(straight, 70)
    halted = make_trainer(*flags, folder=tmp_path / "halted")
    advance(halted, 35)
    halted.save()
    resumed = make_trainer(*flags, folder=tmp_path / "halted")
    resumed.resume(checkpoint.find_checkpoint(tmp_path / "halted", "latest"))
    assert resumed.step.steps == 35
    advance(resumed, 35)
    for name, value in straight.model.field.state_dict().items():
        assert torch.equal(value, resumed.model.field.state_dict()[name]), name
    assert torch.equal(straight.model.sampler.grid.density, resumed.model.sampler.grid.density)
    assert all(map(torch.equal, straight.ema.mean, resumed.ema.mean))
    assert straight.evaluate(None)["psnr"] == resumed.evaluate(None)["psnr"]


def test_the_loop_validates_saves_and_writes_its_history(make_trainer, capsys):
    trainer = make_trainer("--iters", "64", "--eval_cnt", "2", "--save_cnt", "4", "--hsm")
    assert trainer.train() is None
    lines = [json.loads(line) for line in (trainer.folder / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [32, 64]
    assert {"psnr", "ssim", "training_time", "ms_per_step", "peak_memory_mib", "samples_per_step", "hard_fraction"} < set(lines[0])
    assert [path.name for path in sorted((trainer.folder / "checkpoints").iterdir())] == ["best.pth", "step_00000048.pth", "step_00000064.pth"]
    assert (trainer.folder / "validation" / "step_00000032" / "metrics.json").exists()
    results = json.loads((trainer.folder / "results" / "metrics.json").read_text())
    assert results["psnr"] == lines[1]["psnr"] and (results["step"], results["downscale"]) == (64, 1)
    assert "held-out PSNR" in capsys.readouterr().out
    assert 1000 * trainer.seconds_per_step() == pytest.approx(lines[1]["ms_per_step"], rel=1e-3)  # no step since: those before the validation


@pytest.mark.parametrize("device", DEVICES)
def test_a_nonfinite_loss_goes_back_to_the_last_good_state(make_trainer, capsys, device):
    trainer = make_trainer("--iters", "96", "--save_cnt", "1", device=device)
    plain = trainer.advance

    def poisoned():
        if trainer.step.steps == 40 and trainer.restores == 0:
            with torch.no_grad():
                trainer.model.field.colour[0].weight.fill_(torch.nan)
        plain()

    trainer.advance = poisoned
    trainer.train()
    assert trainer.restores == 1 and trainer.step.steps == 96
    assert "not finite at step 40: back to the state of step 0" in capsys.readouterr().out
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.field.parameters())


def test_a_loss_that_stays_nonfinite_ends_the_run_in_a_sentence(make_trainer):
    trainer = make_trainer("--iters", "2000")
    plain = trainer.advance

    def poisoned():
        plain()
        with torch.no_grad():
            trainer.model.field.colour[0].weight.fill_(torch.nan)

    trainer.advance = poisoned
    with pytest.raises(UserError, match="not finite at step"):
        trainer.train()
    state = checkpoint.load_checkpoint(checkpoint.find_checkpoint(trainer.folder, "latest"), "cpu")
    assert all(torch.isfinite(value).all() for value in state["field"].values())


@pytest.mark.parametrize("mining", [[], ["--hsm"]], ids=["baseline", "hsm"])
@pytest.mark.parametrize("flag, weight", [("--lambda_entropy", "0.05"), ("--lambda_tv", "0.01"), ("--lambda_wd", "1000")])
def test_regularisers_act_with_and_without_mining(make_trainer, tmp_path, mining, flag, weight):
    def trained(*flags):
        trainer = make_trainer(*flags, *mining, folder=tmp_path / ("with" if flags else "without"))
        advance(trainer, 150)
        return trainer

    plain, regular = trained(), trained(flag, weight)
    measure = {"--lambda_entropy": _opacity_entropy, "--lambda_tv": _roughness, "--lambda_wd": _size}[flag]
    assert measure(regular) < 0.97 * measure(plain)


def _opacity_entropy(trainer):
    opacity = trainer.model.render(trainer.scene.cameras, 0).opacity.clip(1e-5, 1 - 1e-5)
    return float(-(opacity * torch.tensor(opacity).log2().numpy() + (1 - opacity) * torch.tensor(1 - opacity).log2().numpy()).mean())


def _roughness(trainer):
    grid = trainer.model.field.grid
    return grid.table[: int(grid.offsets[1])].diff(dim=0).square().mean().item()


def _size(trainer):
    grid = trainer.model.field.grid
    return grid.table[: int(grid.offsets[1])].square().mean().item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("flags", [[], ["--hsm"]], ids=["baseline", "hsm"])
def test_adaptive_rays_survive_an_empty_scene(make_trainer, flags, device):
    trainer = make_trainer(*flags, device=device)
    trainer.model.sampler.grid.density.fill_(-1.0)
    trainer.model.sampler.grid.refresh_bits()
    numbers = advance(trainer, 20)
    before = [parameter.clone() for parameter in trainer.model.field.parameters()]
    numbers = advance(trainer, 3)
    assert all(map(torch.equal, before, trainer.model.field.parameters()))
    assert numbers.samples == 0 and numbers.bad_step == -1
    assert trainer.step.ray_count.value.item() == trainer.step.source.capacity


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("flags", [[], ["--hsm"]], ids=["baseline", "hsm"])
def test_photos_of_nothing_but_background_become_an_empty_scene(make_trainer, flags, device):
    trainer = make_trainer("--background", "white", *flags, device=device)
    trainer.step.source.pixels.fill_(255)
    first = advance(trainer, 1)
    numbers = advance(trainer, 400)
    assert numbers.bad_step == -1 and numbers.squared_error < 1e-4 < first.squared_error


@pytest.mark.parametrize("device", DEVICES)
def test_rays_that_overflow_the_sample_buffer_are_left_out(make_trainer, device):
    trainer = make_trainer("--hsm", "--num_rays", "2000", "--no-adaptive_num_rays", "--num_points", "4096", device=device)
    numbers = advance(trainer, 20)
    assert numbers.wanted > 4096 >= numbers.samples > 0 and 0 < numbers.rays < 2000 and numbers.bad_step == -1


@pytest.mark.parametrize("device", DEVICES)
def test_where_few_samples_are_visible_the_baseline_learns_from_those_alone(make_trainer, device):
    trainer = make_trainer(device=device)
    assert not trainer.step._second_pass()
    everything = advance(trainer, 1)
    assert everything.hard == everything.samples
    trainer.step.miner.fit_room(int(0.4 * trainer.step.sampler.capacity))
    assert trainer.step._second_pass()
    numbers = advance(trainer, 1)
    assert numbers.hard == min(numbers.drawn, trainer.step.miner.room) > 0


@pytest.mark.gpu
@pytest.mark.parametrize("flags", [*MINING.values(), ["--hsm", "--lambda_entropy", "1e-3", "--lambda_tv", "1e-6"]], ids=[*MINING, "all"])
def test_a_step_never_waits_for_the_device(make_trainer, flags):
    for graph in ("--graph", "--no-graph"):
        trainer = make_trainer(*flags, graph, device="cuda")
        advance(trainer, 330)  # by then full and partial occupancy updates have been recorded
        with no_host_waits():
            for _ in range(64):
                trainer.advance()
        assert StepNumbers(*trainer.step.numbers.tolist()).bad_step == -1
        assert bool(trainer.step.replay.graphs) == (graph == "--graph")


@pytest.mark.gpu
@pytest.mark.parametrize("flags", MINING.values(), ids=MINING)
def test_recorded_steps_equal_eager_ones(make_trainer, flags):
    """The same random numbers give the same losses: sums of float32 atomics differ in their last bits, which training amplifies slowly."""
    losses = {}
    for graph in ("--graph", "--no-graph"):
        trainer = make_trainer(*flags, graph, device="cuda")
        losses[graph] = torch.tensor([advance(trainer, 1).loss for _ in range(100)])
    difference = (losses["--graph"] / losses["--no-graph"] - 1).abs()
    assert difference[:5].max() < 1e-3 and difference.mean() < 0.02


@pytest.mark.gpu
def test_recorded_steps_resume(make_trainer, tmp_path):
    straight, halted = (make_trainer("--hsm", device="cuda", folder=tmp_path / name) for name in ("straight", "halted"))
    advance(straight, 600)
    advance(halted, 300)
    halted.save()
    resumed = make_trainer("--hsm", device="cuda", folder=tmp_path / "halted")
    advance(resumed, 50)  # its graphs are recorded by now, and must see what is loaded
    resumed.resume(checkpoint.find_checkpoint(tmp_path / "halted", "latest"))
    advance(resumed, 300)
    assert resumed.step.steps == 600
    assert resumed.evaluate(None)["psnr"] == pytest.approx(straight.evaluate(None)["psnr"], abs=0.7)


@pytest.mark.gpu
def test_half_precision_really_runs_and_learns(make_trainer):
    trainer = make_trainer("--hsm", device="cuda")
    source = trainer.step.source
    rays = source.draw(torch.rand(source.capacity, 3, device="cuda"), trainer.step.ray_count.value).rays
    samples, *_ = trainer.step.sampler.place(rays, torch.rand_like(rays.near)[None])
    assert trainer.model.field(samples).dtype == torch.float16
    assert torch.equal(trainer.model.field.grid.half_copy, trainer.model.field.grid.table.half())
    numbers = advance(trainer, 600)
    assert torch.equal(trainer.model.field.grid.half_copy, trainer.model.field.grid.table.half())
    assert numbers.squared_error < 10**-2.2  # 22 dB on the training photos


@pytest.mark.gpu
def test_photos_in_host_memory_train_too(make_trainer):
    trainer = make_trainer("--hsm", "--no-preload", device="cuda")
    assert not trainer.step.source.on_device and not trainer.scene.photos.on_disk
    assert advance(trainer, 400).squared_error < 10**-2
