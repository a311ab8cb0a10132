"""Fields: the interface that all share, what each adds, and the toy field of docs/new_field.md."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import nerf.fields
from nerf import volume
from nerf.errors import UserError
from nerf.fields import FIELDS, MeRFField, NGPField, ProposalField, build_field
from nerf.fields.base import network
from nerf.hsm import HardSampleMiner, MiningRule, by_autograd
from nerf.samples import Packing, Samples

M, BOUND = 300, 2.0
MAKERS = {
    "ngp": lambda half=False: build_field("ngp", BOUND, 10, half),
    "ngp with appearance": lambda half=False: build_field("ngp", BOUND, 10, half, appearance=6, images=5),
    "merf": lambda half=False: build_field("merf", BOUND, 10, half),
    "proposal": lambda half=False: ProposalField(BOUND, 128, 10, half),
}


def made(name, half=False):
    """A field with a table as large as after some training: as drawn, features are too small to tell anything."""
    torch.manual_seed(0)
    field = MAKERS[name](half)
    with torch.no_grad():
        for parameter_name, parameter in field.named_parameters():
            if parameter_name.endswith("table"):
                parameter.uniform_(-1, 1)
    return field


def scattered(count=M, device="cpu", **more):
    generator = torch.Generator().manual_seed(1)
    positions = (torch.rand(count, 3, generator=generator) * 2 - 1) * BOUND
    directions = F.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    image = torch.arange(count) % 5
    return SimpleNamespace(positions=positions.to(device), directions=directions.to(device), image=image.to(device), **more)


@pytest.mark.parametrize("name", MAKERS)
def test_interface(name):
    field, samples = made(name), scattered()
    raw = field(samples)
    assert raw.shape == (M, field.channels) and raw.dtype == torch.float32 and raw.isfinite().all()
    torch.testing.assert_close(field.density(samples.positions), raw[:, 0])
    assert field.half is False and field.signature()["bound"] == BOUND
    assert field(scattered(0)).shape == (0, field.channels) and field.density(torch.empty(0, 3)).shape == (0,)


@pytest.mark.parametrize("name", MAKERS)
def test_rows_are_independent(name):
    """Mining asks again for some rows: they must be what they were among all."""
    field, samples = made(name), scattered()
    some = SimpleNamespace(**{key: value[100:177] for key, value in vars(samples).items()})
    torch.testing.assert_close(field(some), field(samples)[100:177])


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_reach_every_parameter_and_the_positions(name):
    field, samples = made(name), scattered()
    samples.positions.requires_grad_()
    raw = field(samples)
    loss = raw.square().sum()
    if field.deferred:
        loss = loss + field.shade(torch.sigmoid(raw[:, 1:]), torch.ones(M), samples.directions).square().sum()
    loss.backward()
    for parameter_name, parameter in field.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), parameter_name
    assert samples.positions.grad.any(dim=1).float().mean() > 0.9
    samples.positions.grad = None
    field.density(samples.positions).sum().backward()
    assert samples.positions.grad.any()


@pytest.mark.parametrize("name", MAKERS)
def test_gradient_with_respect_to_positions_is_the_slope(name):
    field, samples = made(name), scattered(40)
    positions, step = samples.positions.requires_grad_(), 1e-7
    (gradient,) = torch.autograd.grad(field.double().density(positions.double()).sum(), positions)
    with torch.no_grad():
        along = F.normalize(gradient, dim=-1).double()
        slope = (field.density(positions.double() + step * along) - field.density(positions.double() - step * along)) / (2 * step)
    close = (slope - gradient.norm(dim=-1)).abs() < 1e-3 * gradient.norm(dim=-1) + 1e-3
    assert close.float().mean() > 0.85  # the slope jumps at the borders of cells and where a ReLU turns


@pytest.mark.parametrize("name", MAKERS)
def test_half_is_close_to_float(name):
    samples = scattered()
    exact, half = made(name), made(name, half=True)
    raw = half(samples)
    assert raw.dtype == torch.float16 and half.density(samples.positions).dtype == torch.float16
    torch.testing.assert_close(raw.float(), exact(samples), rtol=0.02, atol=0.02)
    raw.float().sum().backward()
    assert all(parameter.grad is None or parameter.grad.dtype == torch.float32 for parameter in half.parameters())
    assert half.grid.table.grad.any()


@pytest.mark.parametrize("name", MAKERS)
def test_outside_the_cube_and_nan_stay_in_their_row(name):
    field, samples = made(name), scattered()
    expected = field(samples)
    samples.positions[3], samples.positions[4] = torch.nan, 5 * BOUND
    raw = field(samples)
    assert raw.isfinite().all()
    torch.testing.assert_close(raw[5:], expected[5:])


def test_signatures_differ():
    signatures = [made(name).signature() for name in MAKERS]
    assert all(a != b for i, a in enumerate(signatures) for b in signatures[:i])
    assert signatures[0] == {"backbone": "ngp", "bound": BOUND, "log2_table_size": 10, "density_start": 0.0}
    assert MeRFField(2.0, 10).signature() != MeRFField(4.0, 10).signature()
    assert ProposalField(2.0, 128).signature() != ProposalField(2.0, 256).signature()


def test_unknown_backbone_and_appearance_where_there_is_none():
    with pytest.raises(UserError, match="--backbone nerf is not known; choose one of merf, ngp"):
        build_field("nerf", BOUND)
    with pytest.raises(UserError, match="--appearance 8 is not for the backbone merf"):
        build_field("merf", BOUND, 10, appearance=8, images=3)


@pytest.mark.parametrize("settings, message", [({"appearance": -1}, "appearance"), ({"appearance": 4}, "images"), ({"unseen": "none"}, "unseen")])
def test_bad_appearance_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        NGPField(BOUND, 10, **settings)


def with_appearance(unseen="mean", appearance=6):
    torch.manual_seed(0)
    field = NGPField(BOUND, 10, appearance=appearance, images=5, unseen=unseen)
    with torch.no_grad():
        field.appearance.normal_()
    return field


@pytest.mark.parametrize("appearance", [1, 6, 8, 32])
def test_appearance_in_training_is_the_images(appearance):
    field, samples = with_appearance(appearance=appearance), scattered()
    raw = field(samples)
    with torch.no_grad():
        field.appearance[2] += 1
    changed = (field(samples) != raw).any(dim=0), (field(samples) != raw).any(dim=1)
    assert changed[0].tolist() == [False, True, True, True]  # density is the scene's
    assert torch.equal(changed[1].nonzero()[:, 0], (samples.image == 2).nonzero()[:, 0])


def test_appearance_in_evaluation():
    samples, mean, off = scattered(), with_appearance("mean").eval(), with_appearance("off").eval()
    assert not torch.allclose(mean(samples), off(samples))
    assert torch.equal(mean.train()(SimpleNamespace(**{**vars(samples), "image": None})), mean.eval()(samples))
    with torch.no_grad():
        mean.appearance[:] = mean.appearance.mean(dim=0)
        off.appearance[:] = 0
    torch.testing.assert_close(mean.train()(samples), mean.eval()(samples))
    torch.testing.assert_close(off.train()(samples), off.eval()(samples))


def test_appearance_starts_at_zero_and_leaves_the_plain_field_alone():
    assert not NGPField(BOUND, 10, appearance=4, images=3).appearance.any()
    assert "appearance" not in dict(NGPField(BOUND, 10).named_parameters())


def test_a_network_starts_with_outputs_as_large_as_its_inputs():
    torch.manual_seed(0)
    inputs = torch.randn(2000, 64)
    outputs = torch.stack([network(64, [64] * 4, 8)(inputs) for _ in range(20)])
    assert 0.5 < outputs.square().mean() / 2 < 2  # twice theirs: nothing is cut off before the first layer


def test_an_untrained_field_is_fog_of_one_density():
    field = NGPField(BOUND, 10)
    for start in (0.0, 1.5):
        field.density_start = start
        torch.testing.assert_close(field.density(scattered().positions), torch.full((M,), start), rtol=0, atol=1e-2)
        torch.testing.assert_close(field(scattered())[:, 0], torch.full((M,), start), rtol=0, atol=1e-2)


def test_each_plane_of_merf_matters():
    """Moving along one axis changes the two planes that hold it, and not the third."""
    field, positions = made("merf"), scattered().positions
    raw = field.density(positions)
    for plane, (first, second) in zip(field.planes, ((0, 1), (1, 2), (0, 2)), strict=True):
        unit = field._unit(positions)
        expected = plane(torch.stack([unit[:, first], unit[:, second]], dim=-1))
        seen = []
        hook = plane.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
        field.density(positions)
        hook.remove()
        assert torch.equal(seen[0], expected)
        kept = plane.table.detach().clone()
        plane.table.data.zero_()
        assert (field.density(positions) != raw).float().mean() > 0.9
        plane.table.data.copy_(kept)


def test_merf_has_the_papers_sizes_and_ranges():
    field = MeRFField(2.0, 10)
    assert field.channels == 8 and field.grid.resolutions[-1] == 512 and [plane.resolutions[-1] for plane in field.planes] == [2048] * 3
    assert sum(parameter.numel() for parameter in field.shader.parameters()) == 883
    with torch.no_grad():
        field.output.weight.mul_(1e4)
        for module in (field.grid, *field.planes):
            module.table.uniform_(-1, 1)
    raw = field(scattered()).abs()
    assert 13.9 < raw[:, 0].max() <= 14 and 6.9 < raw[:, 1:].max() <= 7


def test_merf_is_linear_near_zero():
    field, samples = MeRFField(BOUND, 10), scattered()
    unlimited = field.output(torch.relu(field.hidden(field.grid(field._unit(samples.positions)) + sum(
        plane(field._unit(samples.positions)[:, [a, b]]) for plane, (a, b) in zip(field.planes, ((0, 1), (1, 2), (0, 2)))
    ))))  # fmt: skip
    torch.testing.assert_close(field(samples), unlimited)


def test_shade():
    features, opacity, directions = torch.rand(M, 3), torch.rand(M), scattered().directions
    assert not made("ngp").deferred and made("ngp").shade(features, opacity, directions) is features
    merf = made("merf")
    assert merf.deferred
    opacity[:10], features = 0, torch.rand(M, 7) * opacity[:, None]
    features[:10] = 0
    trained, evaluated = merf.shade(features, opacity, directions), merf.eval().shade(features, opacity, directions)
    assert trained.shape == (M, 3) and not trained[:10].any()  # an empty ray adds nothing to the background
    assert (trained >= features[:, :3]).all() and (trained - features[:, :3] < 0.3 * opacity[:, None] + 1e-6).all()  # diffuse comes first
    assert torch.equal(evaluated, torch.minimum(trained, opacity[:, None])) and (trained > opacity[:, None]).any()
    other = merf.shade(features, opacity, -directions)
    assert not torch.allclose(other[20:], evaluated[20:])


def test_total_variation_and_weight_decay_go_to_the_grid():
    weight = torch.ones(1)
    for name in MAKERS:
        field = made(name)
        field.add_total_variation_gradient(scattered().positions, weight)
        assert field.grid.table.grad.any()
        before = field.grid.table.grad.clone()
        field.add_weight_decay_gradient(weight)
        assert (field.grid.table.grad != before).any()


def rays_through(field_bound, count=64, along=32, seed=0):
    """Rays of `along` samples each, from the plane z = -bound upwards: (Samples, Packing)."""
    xy = (torch.rand(count, 1, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1).expand(-1, along, -1)
    dt = 2 * field_bound / along
    t = ((torch.arange(along) + 0.5) * dt).expand(count, along)
    positions = torch.cat([xy, t[..., None] - field_bound], dim=-1).reshape(-1, 3)
    directions = torch.tensor([0.0, 0.0, 1.0]).expand(len(positions), 3).contiguous()
    ray = torch.arange(count, dtype=torch.int32)
    samples = Samples(positions, directions, t.reshape(-1).contiguous(), torch.full((count * along,), dt), ray.repeat_interleave(along))
    packing = Packing(torch.stack([ray * along, torch.full_like(ray, along)], dim=-1), torch.tensor([count * along, count, count * along]).int())
    return samples, packing


def colours(field, raw, samples, packing):
    composited = volume.composite(raw, samples, packing, 1e-4)
    directions = samples.directions[packing.rays[:, 0].long()]
    return field.shade(composited.features, composited.opacity, directions)


def train(field, steps, rate, target_of):
    """Mines and learns; returns the mean squared error of the first and the last step."""
    optimizer = torch.optim.Adam(field.parameters(), rate)
    miner = HardSampleMiner(MiningRule(), 64 * 32, torch.Generator().manual_seed(0))

    def learn(samples, packing):
        with torch.no_grad():
            target = target_of(samples, packing)

        def loss(raw):
            return (colours(field, raw, samples, packing) - target).square().mean()

        optimizer.zero_grad()
        mined = miner.step(field, samples, by_autograd(loss), None, Samples.select)
        optimizer.step()
        return mined.told.item()

    errors = [learn(*rays_through(field.bound, seed=step)) for step in range(steps)]
    return errors[0], errors[-1]


def documented(folder):
    """FIELDS as the code of docs/new_field.md leaves it."""
    page = (Path(__file__).parent.parent / "docs" / "new_field.md").read_text()
    code = folder / "ball.py"
    code.write_text("".join(block.split("```")[0] for block in page.split("```python\n")[1:]))
    return runpy.run_path(str(code), {"FIELDS": dict(FIELDS)})["FIELDS"]


def test_the_documented_field_learns(monkeypatch, tmp_path):
    torch.manual_seed(0)
    monkeypatch.setattr(nerf.fields, "FIELDS", documented(tmp_path))
    ball, truth = build_field("ball", 1.0), build_field("ball", 1.0)
    with torch.no_grad():
        truth.centre[:] = torch.tensor([0.3, -0.2, 0.0])
        truth.peak[:], truth.log_size[:], truth.colour[:] = 2.0, -0.7, torch.tensor([2.0, -1.0, 0.5])
    first, last = train(ball, 50, 0.05, lambda samples, packing: colours(truth, truth(samples), samples, packing))
    assert last < 0.1 * first
    assert (ball.centre - truth.centre)[:2].abs().max() < 0.1
    with pytest.raises(UserError, match="--lambda_tv is for fields with a hash grid, which the backbone ball has not"):
        ball.add_total_variation_gradient(torch.zeros(1, 3), torch.ones(1))


@pytest.mark.parametrize("name", ["ngp", "merf"])
def test_each_backbone_learns_by_mining(name):
    """Fifty mined steps on a ball of one colour; MeRF's shader has no gradient here, and needs none."""
    torch.manual_seed(0)

    def target(samples, packing):
        inside = samples.positions[packing.rays[:, 0].long()][:, :2].norm(dim=-1) < 0.6
        return inside[:, None] * torch.tensor([0.8, 0.3, 0.1])

    first, last = train(build_field(name, 1.0, 12), 50, 0.01, target)
    assert last < 0.2 * first


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_cuda_agrees_and_is_captured(name, half):
    """CUDA's outputs are the CPU's, and a replay of the captured passes gives the same again."""
    on_cpu, field = made(name), made(name, half).cuda()
    samples = scattered(device="cuda")
    tolerance = {"rtol": 0.02, "atol": 0.05} if half else {"rtol": 1e-4, "atol": 1e-4}

    def work():
        field.zero_grad(set_to_none=False)
        raw = field(samples)
        value = raw.float().square().sum()
        if field.deferred:
            value = value + field.shade(torch.sigmoid(raw[:, 1:].float()), torch.ones(M, device="cuda"), samples.directions).sum()
        value.backward()
        return raw.detach()

    raw = work()
    torch.testing.assert_close(raw.float().cpu(), on_cpu(scattered()), **tolerance)
    expected = [parameter.grad.clone() for parameter in field.parameters()]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        again = work()
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(again, raw, rtol=1e-3, atol=1e-3)
    for parameter, gradient in zip(field.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item())
