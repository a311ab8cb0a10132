"""The models under one roof: each learns with and without mining, resumes, renders, and its mined gradient is unbiased where it should be."""

import pytest
import torch

from conftest import DEVICES, advance, no_host_waits
from nerf import checkpoint
from nerf.errors import UserError
from nerf.step import StepNumbers

MODELS = {"merf": ("-O", "--backbone", "merf"), "nerfacto": ("-O2",), "nerfacto merf": ("-O2", "--backbone", "merf")}
SMALL = ("--num_steps", "64", "32", "16")  # samples a ray of -O2


def make(make_trainer, model, *flags, **settings):
    preset, *backbone = MODELS[model]
    return make_trainer(*backbone, *(SMALL if preset == "-O2" else ()), *flags, preset=preset, **settings)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mining", [[], ["--hsm"]], ids=["baseline", "hsm"])
@pytest.mark.parametrize("model", MODELS)
def test_each_model_learns(make_trainer, model, mining, device):
    trainer = make(make_trainer, model, *mining, device=device)
    before = trainer.evaluate(None, indices=trainer.scene.val[:1])["psnr"]
    numbers = advance(trainer, 250)
    after = trainer.evaluate(None, indices=trainer.scene.val[:1])["psnr"]
    assert after > before + 2 and numbers.bad_step == -1
    assert numbers.hard <= 0.5 * numbers.samples + 1 if mining else numbers.hard == numbers.samples


@pytest.mark.parametrize("model", MODELS)
def test_each_model_resumes_to_the_bit(make_trainer, tmp_path, model):
    straight, halted = (make(make_trainer, model, "--hsm", folder=tmp_path / name) for name in ("straight", "halted"))
    advance(straight, 40)
    advance(halted, 20)
    halted.save()
    resumed = make(make_trainer, model, "--hsm", folder=tmp_path / "halted")
    resumed.resume(checkpoint.find_checkpoint(tmp_path / "halted", "latest"))
    advance(resumed, 20)
    for part in ("field", "sampler"):
        state = getattr(resumed.model, part).state_dict()
        for name, value in getattr(straight.model, part).state_dict().items():
            assert torch.equal(value, state[name]) if isinstance(value, torch.Tensor) else value == state[name], name


def test_a_checkpoint_of_another_model_is_refused(make_trainer, tmp_path):
    trainer = make(make_trainer, "nerfacto", folder=tmp_path / "run")
    advance(trainer, 1)
    trainer.save()
    other = make(make_trainer, "nerfacto merf", folder=tmp_path / "run")
    with pytest.raises(UserError, match="backbone"):
        other.resume(checkpoint.find_checkpoint(tmp_path / "run", "latest"))


@pytest.mark.parametrize("model", ["ngp", *MODELS])
def test_with_alpha_one_the_mined_gradient_is_the_whole_one_on_average(make_trainer, model):
    """The mean of 150 mined gradients at the network's weights is within 15 % of the gradient of all samples; unweighted it is further off."""
    trainer = make(make_trainer, model, "--hsm") if model != "ngp" else make_trainer("--hsm")
    advance(trainer, 60)
    step = trainer.step
    n = step.source.capacity
    generator = torch.Generator().manual_seed(0)
    pixel, noise = torch.rand(n, 3, generator=generator), torch.rand(step.sampler.noises, n, generator=generator)
    batch = step.source.draw(pixel, step.ray_count.value)
    placed = step.sampler.place(batch.rays, noise)
    background = torch.ones(n, 3)
    parameters = [p for p in step.field.parameters() if p.dim() == 2 and p.shape[0] <= 64]

    def collected(alpha=None, draws=1):
        rule = {"draw": "visible"} if alpha is None else {"alpha": alpha, "budget": "fixed", "fraction": 0.4}
        miner = type(step.miner)(type(step.miner.rule)(**rule), step.sampler.capacity, step.generator)
        step.optimizer.zero_grad()
        for _ in range(draws):
            miner.step(step.field, placed.samples, lambda raw: step._gradient(raw, batch, placed, background), placed.packing.counts[:1], type(placed.samples).select)
            for grid in (m for m in step.field.modules() if hasattr(m, "gradient")):
                grid.gradient.zero_()
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]) / draws

    whole, fair, biased = collected(), collected(1.0, 150), collected(0.0, 150)
    error = lambda gradient: ((gradient - whole).norm() / whole.norm()).item()
    assert error(fair) < min(0.15, error(biased))


def test_options_of_nerfacto_act(make_trainer, tmp_path):
    """Distortion draws weights together, appearance and near gradients change what is learned, annealing ends."""
    plain, distorted = (make(make_trainer, "nerfacto", *flags, folder=tmp_path / name) for name, flags in (("plain", ()), ("distorted", ("--lambda_distort", "1"))))
    numbers = [advance(trainer, 120) for trainer in (plain, distorted)]
    assert numbers[1].loss - numbers[1].squared_error > 0 == numbers[0].loss - numbers[0].squared_error
    looks = make(make_trainer, "nerfacto", "--appearance", "4", "--near_grad_scale", "0.5", "--anneal_steps", "10", folder=tmp_path / "looks")
    assert looks.model.field.appearance.shape == (len(looks.scene.train), 4)
    advance(looks, 5)
    assert 0 < looks.model.sampler.anneal < 1
    advance(looks, 20)
    assert looks.model.sampler.anneal == 1 and looks.model.field.appearance.abs().max() > 0


def test_the_last_sample_can_be_the_background(make_trainer):
    trainer = make(make_trainer, "nerfacto")
    advance(trainer, 60)
    picture = trainer.model.render(trainer.scene.cameras, int(trainer.scene.val[0]))
    assert picture.opacity.min() > 0.99


def test_merf_has_no_appearance(make_trainer):
    with pytest.raises(UserError, match="appearance"):
        make(make_trainer, "merf", "--appearance", "8")


@pytest.mark.gpu
@pytest.mark.parametrize("mining", [[], ["--hsm"]], ids=["baseline", "hsm"])
@pytest.mark.parametrize("model", MODELS)
def test_a_step_of_each_model_never_waits_and_is_recorded(make_trainer, model, mining):
    trainer = make(make_trainer, model, *mining, device="cuda")
    advance(trainer, 330)
    with no_host_waits():
        for _ in range(40):
            trainer.advance()
    assert trainer.step.replay.graphs and StepNumbers(*trainer.step.numbers.tolist()).bad_step == -1


def test_marched_fields_start_denser_than_proposed_ones(make_trainer):
    marched, proposed = (make_trainer(preset=preset).model.field for preset in ("-O", "-O2"))
    origin = torch.zeros(1, 3)
    assert marched.density(origin).item() > 1 > proposed.density(origin).item() > -1


def test_proposals_learn_less_and_less_often(make_trainer):
    learns = make(make_trainer, "nerfacto").model.sampler.learns
    times = [sum(map(learns, range(start, start + 1000))) for start in range(0, 7000, 1000)]
    assert times[0] == 1000 and times == sorted(times, reverse=True) and times[-1] == 200
