"""Camera-pose refinement: the gradient of a rendered loss, what stays as it is, resuming, and poses that were perturbed on purpose."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import raymarching
from conftest import advance, no_host_waits
from nerf import checkpoint, volume
from nerf.errors import UserError
from nerf.poses import WARM_STEPS, PoseRefinement, similarity_motions
from nerf.rays import RaySource
from nerf.samples import Samples
from nerf.scene import load_scene
from nerf.scene.capture import split_views
from nerf.scene.transforms import read_transforms
from nerf.step import StepNumbers
from scene_files import options as scene_options
from scene_files import ring_scene, ring_transforms

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "perturb_poses.py"
SMALL = ("--num_steps", "64", "32", "16")
MODELS = {"ngp": ("-O",), "merf": ("-O", "--backbone", "merf"), "nerfacto": ("-O2", *SMALL), "nerfacto merf": ("-O2", "--backbone", "merf", *SMALL)}
MINING = pytest.mark.parametrize("mining", [[], ["--hsm"]], ids=["baseline", "hsm"])


def make(make_trainer, model, *flags, **settings):
    preset, *rest = MODELS[model]
    return make_trainer(*rest, *flags, preset=preset, **settings)


def exponential(w):
    """[n, 3] rotation vectors -> [n, 3, 3], by the exponential of matrices."""
    x, y, z = w.unbind(dim=1)
    zero = torch.zeros_like(x)
    return torch.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).view(-1, 3, 3))


def random_poses(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rotation = exponential(torch.randn(n, 3, generator=generator, dtype=torch.float64))
    return torch.cat([rotation, torch.randn(n, 3, 1, generator=generator, dtype=torch.float64)], dim=2)


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-3, 1.0, math.pi])
def test_refined_poses_are_those_of_the_exponential(size):
    poses, views = random_poses(6), torch.tensor([4, 0, 3])
    refinement = PoseRefinement(poses, views, False)
    twists = torch.nn.functional.normalize(torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))[:, :3]).repeat(1, 2) * size
    with torch.no_grad():
        refinement.twists.copy_(twists)
    address = refinement.refined.data_ptr()
    refinement.refresh()
    expected = poses.clone()
    expected[views, :, :3] = exponential(twists[:, :3]) @ poses[views, :, :3]
    expected[views, :, 3] += twists[:, 3:]
    assert torch.allclose(refinement.refined, expected, rtol=0, atol=1e-9) and refinement.refined.data_ptr() == address
    if size == 0:
        assert torch.equal(refinement.refined, poses)


@pytest.mark.parametrize("contract", [False, True])
@pytest.mark.parametrize("size", [0.0, 0.4])
def test_the_gradient_is_that_of_rays_drawn_anew(contract, size):
    """In float64, of a smooth function of the samples; some lie outside the unit cube, some are padding."""
    n, m = 3, 200
    generator = torch.Generator().manual_seed(2)
    poses, views = random_poses(5), torch.tensor([1, 4, 2])
    refinement = PoseRefinement(poses, views, contract)
    with torch.no_grad():
        refinement.twists.copy_(size * torch.randn(n, 6, generator=generator, dtype=torch.float64))
    refinement.refresh()
    image = torch.randint(n, (m,), generator=generator)
    local = torch.nn.functional.normalize(torch.randn(m, 3, generator=generator, dtype=torch.float64))
    t = 4 * torch.rand(m, generator=generator, dtype=torch.float64)
    ray_index = torch.where(torch.rand(m, generator=generator) < 0.8, 0, -1).int()
    mixing = torch.randn(6, 4, generator=generator, dtype=torch.float64)

    def placed(twists):
        rotation = exponential(twists[:, :3]) @ poses[views, :, :3]
        origin = poses[views, :, 3] + twists[:, 3:]
        directions = (rotation[image] @ local[:, :, None])[:, :, 0]
        positions = origin[image] + t[:, None] * directions
        return (raymarching.reference.contract(positions) if contract else positions), directions

    def value(positions, directions):
        return ((torch.cat([positions, directions], dim=1) @ mixing).sin() * (ray_index[:, None] >= 0)).sum()

    positions, directions = placed(refinement.twists.detach())
    samples = refinement.attach(Samples(positions, directions, t, t, ray_index, image))
    assert torch.equal(samples.positions, positions) and torch.equal(samples.directions, directions)
    mixed = torch.cat([samples.positions, samples.directions], dim=1) @ mixing
    mixed.sin()[ray_index >= 0].sum().backward()
    twists = refinement.twists.detach().clone().requires_grad_()
    value(*placed(twists)).backward()
    assert torch.allclose(refinement.twists.grad, twists.grad, rtol=1e-9, atol=1e-9)


def test_padding_has_no_gradient_whatever_the_field_says():
    refinement = PoseRefinement(random_poses(2), torch.arange(2), True)
    row = torch.full((4, 3), 0.5, dtype=torch.float64)
    padding = torch.full((4,), -1, dtype=torch.int32)
    samples = refinement.attach(Samples(row, row, row[:, 0], row[:, 0], padding, torch.zeros(4, dtype=torch.int64)))
    (samples.positions.sum() * torch.nan).backward()
    assert not refinement.twists.grad.any()


@MINING
@pytest.mark.parametrize("model", ["ngp", "nerfacto", "nerfacto merf"])
def test_a_step_leaves_the_gradient_of_the_rendered_loss(make_trainer, monkeypatch, model, mining):
    """Against central differences of the composited loss, in float64, with the samples' t and all networks held. No gradient shrinks near a camera,
    and no ray stops early: float32 and float64 would not agree where."""
    trainer = make(make_trainer, model, "--refine_poses", "--pose_lr", "1e-9", "--T_thresh", "0", "--near_grad_scale", "0", *mining)
    advance(trainer, 40)
    step, caught = trainer.step, {}
    field, poses = step.field, step.poses
    if mining:
        step.miner.draw = lambda delta, count: everything(delta)
    monkeypatch.setattr(step.sampler, "place", keeping(step.sampler.place, caught, "placed"))
    monkeypatch.setattr(step.source, "draw", keeping(step.source.draw, caught, "batch"))
    monkeypatch.setattr(step.optimizer, "step", lambda: caught.update(gradient=poses.twists.grad.clone()))
    monkeypatch.setattr(step, "_regularise_grid", lambda _: None)
    weights = {name: value.clone() for name, value in field.state_dict().items()}
    monkeypatch.setattr(torch, "rand", keeping(torch.rand, caught, "random"))
    step()
    monkeypatch.undo()
    assert all(torch.equal(value, weights[name]) for name, value in field.state_dict().items())
    field.double()
    poses.double()
    samples, packing = caught["placed"].samples, caught["placed"].packing
    rays, target = caught["batch"].rays, caught["batch"].target.double()
    image = step.source.numbers[rays.image][samples.ray_index.clamp(min=0).long()]
    background = caught["random"].split((3 * len(target), step.sampler.noises * len(target), 3 * len(target)))[2].view(-1, 3).double()
    background = background if step.options.background == "random" else torch.ones_like(background)
    t, dt = samples.t.double(), samples.dt.double()
    local = torch.einsum("mji,mj->mi", poses.refined[poses.views][image][:, :, :3], samples.directions.double())
    shading = rays.directions.double()  # held: no gradient comes from the deferred shader's directions

    @torch.no_grad()
    def loss(twists):
        poses.twists.copy_(twists)
        poses.refresh()
        pose = poses.refined[poses.views][image]
        directions = torch.einsum("mij,mj->mi", pose[:, :, :3], local)
        positions = pose[:, :, 3] + t[:, None] * directions
        if step.options.contract:
            positions = raymarching.reference.contract(positions)
        raw = field(Samples(positions, directions, t, dt, samples.ray_index, image))
        sigma, features = raw[:, 0].exp(), raw[:, 1:].sigmoid()
        seen = volume.Composited(*raymarching.composite_rays_train(sigma, features, t, dt, packing.rays, step.options.T_thresh))
        shaded = field.shade(seen.features, seen.opacity, shading) + (1 - seen.opacity[:, None]) * background
        return ((shaded - target).square().mean(dim=1) * packing.kept()).sum() / packing.kept().sum()

    start = poses.twists.detach().clone()
    photo = int(image[samples.ray_index >= 0].bincount().argmax())
    differences = []
    for column in range(6):
        delta = torch.zeros_like(start)
        delta[photo, column] = 1e-9
        differences.append((loss(start + delta) - loss(start - delta)) / 2e-9)
    expected, gradient = torch.stack(differences), caught["gradient"][photo].double() / step.optimizer.loss_scale
    assert (gradient - expected).norm() < 1e-2 * expected.norm()  # float32 against float64, among the corners of a field of ReLUs


def everything(delta):
    """A draw that takes all samples."""
    from nerf.hsm import HardSamples

    return HardSamples(torch.arange(len(delta)), delta.clone(), torch.tensor([len(delta)] * 2, dtype=torch.int32))


def keeping(function, caught, name):
    """function, whose results are kept in caught[name]: the first of them."""

    def wrapped(*arguments, **settings):
        result = function(*arguments, **settings)
        caught.setdefault(name, result)
        return result

    return wrapped


def test_a_similarity_of_all_cameras_is_taken_out_and_nothing_else():
    poses = random_poses(8)
    refinement = PoseRefinement(poses, torch.arange(8), False)
    turn, shift, growth = torch.tensor([[1e-4, -2e-4, 3e-4]], dtype=torch.float64), torch.tensor([1e-3, 0, 2e-3], dtype=torch.float64), 1e-4
    origins = poses[:, :, 3]
    moved = (1 + growth) * origins @ exponential(turn)[0].T + shift
    common = torch.cat([turn.expand(8, 3), moved - origins], dim=1)
    own = torch.randn(8, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    basis = similarity_motions(origins)
    own = own - (basis @ (basis.T @ own.view(-1))).view(8, 6)
    with torch.no_grad():
        refinement.twists.copy_(own + common)
    refinement.settle(torch.tensor([1e6], dtype=torch.float64))
    assert basis.shape == (48, 7) and torch.allclose(refinement.twists, own, atol=1e-6) and own.norm() > 1


@pytest.mark.parametrize("n, columns", [(1, 6), (2, 7)])
def test_few_cameras_have_fewer_motions_of_their_own(n, columns):
    assert similarity_motions(random_poses(n)[:, :, 3]).shape == (6 * n, columns)


def test_the_first_steps_are_damped():
    refinement = PoseRefinement(random_poses(8), torch.arange(8), False)
    for step in (0, 100):
        with torch.no_grad():
            refinement.twists[0, 0] = 1e-3
        refinement.settle(torch.tensor([step], dtype=torch.float64))
        assert refinement.twists.abs().max() <= 1e-3 * step / WARM_STEPS
    assert refinement.twists[0, 0] > 0


@MINING
@pytest.mark.parametrize("model", MODELS)
def test_poses_that_hardly_move_change_no_loss(make_trainer, tmp_path, model, mining):
    losses = {}
    for name, flags in (("plain", ()), ("refined", ("--refine_poses", "--pose_lr", "1e-12"))):
        trainer = make(make_trainer, model, *mining, *flags, folder=tmp_path / name)
        losses[name] = [advance(trainer, 1).loss for _ in range(8)]
    assert losses["plain"][0] == losses["refined"][0]
    assert losses["plain"] == pytest.approx(losses["refined"], rel=1e-3)


def test_photos_in_host_memory_and_one_photo_a_step_move_only_the_trained_ones(make_trainer):
    trainer = make_trainer("--refine_poses", "--no-preload", "--no-random_image_batch", "--appearance", "4", "--lr_schedule", "exponential")
    given = torch.from_numpy(trainer.scene.cameras.poses).clone()
    advance(trainer, 60)
    moved = (trainer.step.source.views.poses != given).flatten(1).any(dim=1)
    assert moved[torch.from_numpy(trainer.scene.train)].any() and not moved[torch.from_numpy(trainer.scene.val)].any()
    assert torch.equal(torch.from_numpy(trainer.scene.cameras.poses), given)  # what evaluation reads
    rates = [float(group["lr"]) for group in trainer.step.optimizer.param_groups]
    assert rates[-1] / trainer.options.pose_lr == pytest.approx(rates[0] / trainer.options.lr) and rates[-1] < trainer.options.pose_lr


@pytest.mark.parametrize("model", ["ngp", "nerfacto merf"])
def test_resumes_to_the_bit(make_trainer, tmp_path, model):
    flags = ("--hsm", "--refine_poses")
    straight, halted = (make(make_trainer, model, *flags, folder=tmp_path / name) for name in ("straight", "halted"))
    advance(straight, 40)
    advance(halted, 20)
    halted.save()
    resumed = make(make_trainer, model, *flags, folder=tmp_path / "halted")
    advance(resumed, 3)
    resumed.resume(checkpoint.find_checkpoint(tmp_path / "halted", "latest"))
    advance(resumed, 20)
    assert straight.step.poses.twists.any()
    assert torch.equal(straight.step.poses.twists, resumed.step.poses.twists)
    assert torch.equal(straight.step.source.views.poses, resumed.step.source.views.poses)
    for name, value in straight.model.field.state_dict().items():
        assert torch.equal(value, resumed.model.field.state_dict()[name]), name


@pytest.mark.parametrize("flags, said", [([], "made with .*; give that flag"), (["--refine_poses"], "made without .*; leave out that flag")])
def test_a_checkpoint_fits_only_with_the_same_flag(make_trainer, tmp_path, flags, said):
    trainer = make_trainer(*([] if flags else ["--refine_poses"]))
    advance(trainer, 1)
    trainer.save()
    with pytest.raises(UserError, match=said):
        make_trainer(*flags).resume(checkpoint.find_checkpoint(tmp_path / "run", "latest"))


def test_what_is_written(tmp_path):
    refinement = PoseRefinement(random_poses(3).float(), torch.tensor([2, 0]), False)
    refinement.save(tmp_path / "poses.json", ["b.png", "a.png"])
    written = json.loads((tmp_path / "poses.json").read_text())
    assert list(written) == ["b.png", "a.png"] and written["a.png"]["twist"] == [0.0] * 6
    assert np.allclose(written["b.png"]["camera_to_world"], refinement.refined[2])


@pytest.fixture(scope="session")
def denser_scene(tmp_path_factory):
    """The demo scene from 48 places, 80x60."""
    folder = tmp_path_factory.mktemp("scenes") / "denser"
    command = [sys.executable, str(SCRIPT.with_name("make_demo_scene.py")), str(folder), "--views", "48", "--width", "80", "--height", "60", "--points", "600"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_wrong_poses_become_better_and_so_do_the_pictures(make_trainer, denser_scene, tmp_path, monkeypatch):
    """Poses off by about a degree and 0.02: their mean error falls by a fourth, and held-out photos, whose poses are right, gain a decibel."""
    true, generator = load_scene(scene_options(denser_scene, contract=True, bound=128.0)), torch.Generator().manual_seed(1)
    photos = torch.from_numpy(true.train)
    noise = torch.randn(len(photos), 6, generator=generator) / math.sqrt(3) * torch.tensor([math.radians(1)] * 3 + [0.02] * 3)
    wrong, right = torch.from_numpy(true.cameras.poses.copy()), torch.from_numpy(true.cameras.poses[true.train])
    wrong[photos] = torch.cat([exponential(noise[:, :3]) @ right[:, :, :3], right[:, :, 3:] + noise[:, 3:, None]], dim=2)
    monkeypatch.setattr(RaySource, "__init__", from_poses(wrong, RaySource.__init__))

    def error(trainer):
        now = trainer.step.source.views.poses[photos]
        cosine = ((now[:, :, :3] * right[:, :, :3]).sum(dim=(1, 2)) - 1) / 2
        return cosine.clamp(-1, 1).acos().mean(), (now[:, :, 3] - right[:, :, 3]).norm(dim=1).mean()

    psnr, errors = {}, {}
    for name, flags in (("fixed", ()), ("refined", ("--refine_poses", "--pose_lr", "1e-3"))):
        trainer = make(make_trainer, "nerfacto", *flags, "--num_points", "8192", scene=denser_scene, folder=tmp_path / name)
        advance(trainer, 600)
        psnr[name], errors[name] = trainer.evaluate(None)["psnr"], error(trainer)
    assert errors["refined"][0] < 0.75 * errors["fixed"][0] and errors["refined"][1] < 0.75 * errors["fixed"][1], errors
    assert psnr["refined"] > psnr["fixed"] + 1, psnr


def from_poses(poses, initialise):
    """RaySource.__init__, for rays from other poses than those that evaluation reads."""

    def wrapped(source, *arguments):
        initialise(source, *arguments)
        source.views = source.views.with_poses(poses.clone())

    return wrapped


@pytest.mark.gpu
@MINING
@pytest.mark.parametrize("model", MODELS)
def test_recorded_steps_equal_eager_ones_and_never_wait(make_trainer, model, mining):
    losses, twists = {}, {}
    for graph in ("--graph", "--no-graph"):
        trainer = make(make_trainer, model, "--refine_poses", *mining, graph, device="cuda")
        losses[graph] = torch.tensor([advance(trainer, 1).loss for _ in range(60)])
        twists[graph] = trainer.step.poses.twists.detach().cpu()
        if graph == "--graph":
            assert trainer.step.replay.graphs
        with no_host_waits():
            for _ in range(10):
                trainer.advance()
        assert StepNumbers(*trainer.step.numbers.tolist()).bad_step == -1
    difference = (losses["--graph"] / losses["--no-graph"] - 1).abs()
    assert difference[:5].max() < 2e-3 and difference.mean() < 0.03
    assert twists["--graph"].any() and torch.nn.functional.cosine_similarity(twists["--graph"].view(-1), twists["--no-graph"].view(-1), dim=0) > 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("contract", [False, True])
def test_on_a_gpu_gradient_and_poses_are_those_of_the_cpu(contract):
    results = []
    for device in ("cpu", "cuda"):
        generator = torch.Generator().manual_seed(4)
        refinement = PoseRefinement(random_poses(5).float().to(device), torch.tensor([1, 4, 2], device=device), contract)
        rows = [torch.randn(5000, 3, generator=generator).clamp(-1.9, 1.9).to(device) for _ in range(2)]
        t, image = torch.rand(5000, generator=generator).to(device), torch.randint(3, (5000,), generator=generator).to(device)
        with torch.no_grad():
            refinement.twists.copy_(0.1 * torch.randn(3, 6, generator=generator))
        refinement.settle(torch.full((1,), 500.0, device=device))
        samples = refinement.attach(Samples(*rows, t, t, torch.zeros_like(image).int(), image))
        (samples.positions.sin() + samples.directions.cos()).sum().backward()
        results.append((refinement.twists.grad.cpu(), refinement.refined.cpu()))
    for cpu, cuda in zip(*results, strict=True):
        assert torch.allclose(cpu, cuda, rtol=1e-4, atol=1e-3)


def perturbed(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("files", [["transforms.json"], ["transforms_train.json", "transforms_val.json"]], ids=["single", "splits"])
def test_the_script_perturbs_training_poses_alone(tmp_path, files):
    for number, name in enumerate(files):
        ring_transforms(tmp_path / "scene", name, count=16, folder=f"images{number}")
    result = perturbed(tmp_path / "scene", tmp_path / "out", "--degrees", 2, "--translation", 0.1, "--seed", 7)
    assert result.returncode == 0, result.stderr
    before, after = (read_transforms(tmp_path / name, scene_options(tmp_path / name)) for name in ("scene", "out"))
    train, val, _ = split_views(len(before.files), before.splits, "train")
    assert np.array_equal(before.poses[val], after.poses[val]) and before.names == after.names
    turn = np.einsum("nij,nij->n", before.poses[train, :, :3], after.poses[train, :, :3])
    angle = np.degrees(np.arccos((turn - 1) / 2))
    assert (angle > 0).all() and 1 < np.sqrt((angle**2).mean()) < 3
    assert all(path.samefile(other) for path, other in zip(before.files, after.files, strict=True))
    again = perturbed(tmp_path / "scene", tmp_path / "again", "--degrees", 2, "--translation", 0.1, "--seed", 7)
    assert again.returncode == 0 and (tmp_path / "again" / files[0]).read_bytes() == (tmp_path / "out" / files[0]).read_bytes()
    taken = perturbed(tmp_path / "scene", tmp_path / "out")
    assert taken.returncode == 1 and "choose another name" in taken.stderr and taken.stderr.count("\n") == 1


@pytest.mark.parametrize("model", ["sparse/0", "colmap/sparse/0"])
def test_a_perturbed_scene_is_read_with_the_wrong_poses_although_there_is_a_model_of_the_right_ones(tmp_path, model):
    ring_scene(tmp_path / "scene", place=model)
    ring_transforms(tmp_path / "scene", "transforms.json", count=16, folder="photos")
    assert perturbed(tmp_path / "scene", tmp_path / "out", "--degrees", 2).returncode == 0
    scene = load_scene(scene_options(tmp_path / "out", data_format="auto"))
    right, wrong = (read_transforms(tmp_path / name, scene_options(tmp_path / name)).poses for name in ("scene", "out"))
    turned, read = (np.einsum("nij,nij->n", poses[1:, :, :3], poses[:-1, :, :3]) for poses in (wrong, scene.cameras.poses))  # turns between photos
    np.testing.assert_allclose(read, turned, atol=1e-5)
    assert np.abs(turned - np.einsum("nij,nij->n", right[1:, :, :3], right[:-1, :, :3])).max() > 1e-3


def test_the_script_refuses_a_colmap_scene(tmp_path):
    result = perturbed(ring_scene(tmp_path / "scene"), tmp_path / "out")
    assert result.returncode == 1 and "COLMAP scenes cannot be perturbed" in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
