"""Training end to end on the CPU: learning, resuming to the bit, non-finite losses, regularisers."""

import json

import pytest
import torch

from nerf import checkpoint
from nerf.errors import UserError
from nerf.step import StepNumbers


def advance(trainer, steps):
    """Trains as the loop does, without its schedule."""
    with trainer.clock.running():
        for _ in range(steps):
            trainer.advance()
            if trainer.step.steps % 16 == 0:
                trainer.follow()
    return StepNumbers(*trainer.step.numbers.tolist())


@pytest.mark.parametrize("flags", [[], ["--hsm"], ["--hsm", "--hsm_draw", "poisson", "--hsm_alpha", "1"]], ids=["baseline", "hsm", "poisson"])
def test_learns_the_demo_scene(make_trainer, flags):
    trainer = make_trainer(*flags)
    before = trainer.evaluate(None)["psnr"]
    numbers = advance(trainer, 400)
    after = trainer.evaluate(None)["psnr"]
    assert after > max(16.5, before + 3)  # dB, held-out
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
    assert torch.equal(straight.model.grid.density, resumed.model.grid.density)
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
    assert json.loads((trainer.folder / "results" / "metrics.json").read_text())["psnr"] == lines[1]["psnr"]
    assert "held-out PSNR" in capsys.readouterr().out


def test_a_nonfinite_loss_goes_back_to_the_last_good_state(make_trainer, capsys):
    trainer = make_trainer("--iters", "96", "--save_cnt", "1")
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


def test_adaptive_rays_survive_an_empty_scene(make_trainer):
    trainer = make_trainer()
    trainer.model.grid.density.fill_(-1.0)
    trainer.model.grid.refresh_bits()
    numbers = advance(trainer, 20)
    assert numbers.samples == 0 and numbers.bad_step == -1
    assert trainer.step.ray_count.value.item() == trainer.step.source.capacity


@pytest.mark.gpu
@pytest.mark.parametrize("flags", [[], ["--hsm"], ["--hsm", "--hsm_draw", "poisson", "--lambda_entropy", "1e-3", "--lambda_tv", "1e-6"]], ids=["baseline", "hsm", "all"])
def test_a_step_never_waits_for_the_device(make_trainer, flags):
    trainer = make_trainer(*flags, device="cuda")
    advance(trainer, 20)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(300):  # full and partial occupancy updates are among them
            trainer.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert StepNumbers(*trainer.step.numbers.tolist()).bad_step == -1


@pytest.mark.gpu
def test_half_precision_really_runs_and_learns(make_trainer):
    trainer = make_trainer("--hsm", device="cuda")
    samples = trainer.step.sampler.sample(trainer.step.source.draw(trainer.step.ray_count.value).rays, trainer.step.generator)[0]
    assert trainer.model.field(samples).dtype == torch.float16
    assert advance(trainer, 600).squared_error < 10**-2.2  # 22 dB on the training photos
