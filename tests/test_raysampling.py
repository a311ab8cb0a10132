"""Sampling by proposals: each operator against its twin, the distributions that it must reproduce, gradients, and its limits."""

import math

import pytest
import torch

import raymarching
import raysampling
from raysampling import ops, reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
EVERYWHERE = pytest.mark.parametrize("device", DEVICES)
compiled = pytest.mark.skipif(ops.kernels is reference, reason="the kernels were not compiled")
SIZES = [(1, 1), (3, 2), (48, 96), (96, 31), (256, 33), (1024, 1024)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def uniform(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def some_edges(rays, intervals, seed=0, dtype=torch.float32):
    """[N, S + 1] ascending in [0, 1], from 0 to 1 on the first ray."""
    edges = uniform(rays, intervals + 1, seed=seed, dtype=dtype).sort(1).values
    edges[:1, 0], edges[:1, -1] = 0, 1
    return edges


def problem(rays=40, intervals=48, used=None, seed=0, dtype=torch.float32, device="cpu"):
    """Rays near and far, of which some miss (2, 3, 5) and those from `used` on are not in use."""
    near, far = 10 ** (3 * uniform(rays, seed=seed) - 2), 10 ** (4 * uniform(rays, seed=seed + 1))
    near, far = torch.minimum(near, far), torch.maximum(near, far) * 1.01
    near[2:4], far[2:3], far[3:4], far[5:6] = 1e9, 1e9, 5.0, math.nan
    directions = torch.nn.functional.normalize(uniform(rays, 3, seed=seed + 2) - 0.5, dim=1)
    data = {
        "edges": some_edges(rays, intervals, seed + 3, dtype),
        "origins": (4 * uniform(rays, 3, seed=seed + 4) - 2).to(dtype),
        "directions": directions.to(dtype),
        "near": near.to(dtype),
        "far": far.to(dtype),
        "count": torch.tensor([rays - 3 if used is None else used], dtype=torch.int32),
    }
    return {name: value.to(device) for name, value in data.items()}


def some_logits(rays, intervals, seed=9, dtype=torch.float32, device="cpu"):
    """Mostly empty rays with something in them."""
    return (9 * uniform(rays, intervals, seed=seed) - 6).to(dtype).to(device)


def doubled(data):
    return {name: value.double().cpu() if value.is_floating_point() else value.cpu() for name, value in data.items()}


def pick(data, *names):
    return {name: data[name] for name in names}


def on_the_way(data):
    return pick(data, "near", "far", "count")


def with_samples(data):
    return reference.rays_with_samples(**on_the_way(data)).cpu()


def close(ours, theirs, rtol=1e-5, atol=1e-6):
    assert ours.dtype in (torch.float32, torch.float64, torch.int32)
    torch.testing.assert_close(ours.cpu().to(theirs.dtype), theirs, rtol=rtol, atol=atol)


def test_compiled_form_is_tested():
    assert ops.kernels is not reference, "the kernels were not compiled, so these tests would compare the twin with itself"


@EVERYWHERE
@pytest.mark.parametrize("intervals", [1, 3, 48, 256, 1024])
@pytest.mark.parametrize("contract", [False, True])
@pytest.mark.parametrize("last_open", [False, True])
def test_placing_matches_the_twin(contract, last_open, intervals, device):
    data = problem(intervals=intervals, device=device)
    names = ("positions", "directions", "t", "dt", "ray_index")
    ours = dict(zip(names, raysampling.place_samples(**data, contract=contract, last_open=last_open), strict=True))
    theirs = dict(zip(names, reference.place_samples(*doubled(data).values(), contract, last_open), strict=True))
    assert ours["ray_index"].dtype == torch.int32 and all(len(value) == 40 * intervals for value in ours.values())
    close(ours["t"], theirs["t"], 2e-6, 0)
    assert ((ours["dt"].cpu() - theirs["dt"]).abs() <= 2e-6 * (theirs["t"] + theirs["dt"])).all()
    scale = 1 if contract else theirs["t"].max().item()
    close(ours["positions"], theirs["positions"], 1e-5, 4e-6 * scale)
    close(ours["directions"], theirs["directions"], 0, 1e-7)
    assert torch.equal(ours["ray_index"].cpu(), theirs["ray_index"])
    misses = ~with_samples(data).repeat_interleave(intervals)
    assert misses.sum() == 6 * intervals and (ours["ray_index"].cpu()[misses] == -1).all()
    for name in ("positions", "directions", "t", "dt"):
        assert not ours[name].cpu()[misses].any()
    if last_open:
        assert (ours["dt"].cpu().view(40, -1)[with_samples(data), -1] == 1e10).all()


@EVERYWHERE
def test_contraction_is_that_of_raymarching(device):
    data = problem(rays=500, intervals=64, device=device)
    plain = raysampling.place_samples(**data, contract=False, last_open=False)[0]
    plain[:3] = plain[:3].nan_to_num(0)
    bent = raysampling.place_samples(**data, contract=True, last_open=False)[0]
    torch.testing.assert_close(bent, raymarching.contract(plain), rtol=1e-6, atol=1e-7)
    assert (bent.abs() < 2.000001).all() and (bent.abs().amax(1) > 1).any() and (bent.abs().amax(1) < 1).any()


@EVERYWHERE
@pytest.mark.parametrize(("near", "far"), [(0.05, 0.7), (0.05, 6.0), (0.2, 1e4), (1.0, 1e4), (3.0, 1e9), (0.5, 3e38)])
def test_spacing_inverts_and_keeps_far_distances(near, far, device):
    edges = torch.linspace(0, 1, 257, device=device)[None]
    zero = torch.zeros(1, 3, device=device)
    given = torch.tensor([near], device=device), torch.tensor([far], device=device), torch.ones(1, dtype=torch.int32, device=device)
    *_, t, dt, _ = raysampling.place_samples(edges, zero, zero, *given, contract=False, last_open=False)
    distance = near + torch.cat([torch.zeros(1).double(), dt.double().cpu().cumsum(0)])
    close(t.double().cpu(), (distance[1:] + distance[:-1]) / 2, 1e-5, 0)
    assert (dt > 0).all() and distance[0].item() == pytest.approx(near, rel=1e-5) and distance[-1].item() == pytest.approx(far, rel=1e-5)

    def spacing(t):
        return torch.where(t < 1, t / 2, 1 - 0.5 / t)

    low, high = spacing(torch.tensor([near, far]).double())
    close((spacing(distance) - low) / (high - low), edges[0].double().cpu(), 0, 1e-6)


@EVERYWHERE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("anneal", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize(("intervals", "wanted"), SIZES)
@pytest.mark.parametrize("own_noise", [False, True])
def test_resampling_matches_the_twin(own_noise, intervals, wanted, anneal, dtype, device):
    data = problem(intervals=intervals, device=device)
    logit = some_logits(40, intervals, dtype=dtype, device=device)
    noise = (uniform(40, wanted + 1) if own_noise else uniform(40)).to(device)
    exponent = None if anneal is None else torch.tensor([anneal], device=device)
    edges, weights = raysampling.resample(data["edges"], logit, **on_the_way(data), noise=noise, intervals=wanted, anneal=exponent)
    wide = doubled({**data, "logit": logit, "noise": noise})
    arguments = [wide[name] for name in ("edges", "logit", "near", "far", "count", "noise")]
    expected = reference.resample(*arguments, wanted, 0.01, None if anneal is None else exponent.double().cpu())
    assert edges.shape == (40, wanted + 1) and weights.shape == (40, intervals)
    close(weights, expected[1], 1e-3, 3e-6)
    close(edges, expected[0], 0, 1e-4)  # float32 sums over as many as 1024 intervals
    assert (edges.diff(dim=1) >= 0).all() and (edges >= data["edges"][:, :1]).all() and (edges <= data["edges"][:, -1:]).all()
    assert (weights >= 0).all() and (weights.double().sum(1) <= 1 + 1e-5).all()
    assert not weights.cpu()[~with_samples(data)].any() and (weights.sum(1).cpu()[with_samples(data)] > 0).all()


@EVERYWHERE
def test_edges_ascend_strictly_where_they_can(device):
    """From 256 even intervals to 96 to 48, as in training, with one dense place."""
    rays = 200
    data = problem(rays=rays, intervals=256, used=rays, device=device)
    edges = torch.linspace(0, 1, 257, device=device).expand(rays, -1)
    for wanted in (96, 48):
        logit = torch.full((rays, edges.shape[1] - 1), -8.0, device=device)
        logit[torch.arange(rays), torch.arange(rays) % logit.shape[1]] = 8
        edges, _ = raysampling.resample(edges, logit, **on_the_way(data), noise=uniform(rays).to(device), intervals=wanted)
        assert (edges.diff(dim=1) > 0).all() and (edges >= 0).all() and (edges <= 1).all()


@EVERYWHERE
def test_resampling_reproduces_a_distribution(device):
    """Many rays with the same weights: the histogram of independent positions is the weights', and deterministic quantiles are exact."""
    rays, wanted = 4000, 63
    edges = some_edges(1, 12, seed=5).expand(rays, -1).contiguous().to(device)
    near, far = torch.full((rays,), 0.1, device=device), torch.full((rays,), 8.0, device=device)
    count = torch.tensor([rays], dtype=torch.int32, device=device)
    logit = (4 * uniform(12, seed=6) - 3).expand(rays, -1).contiguous().to(device)
    noise = uniform(rays, wanted + 1, seed=7).to(device)
    drawn, weights = raysampling.resample(edges, logit, near, far, count, noise, wanted, padding=0.02)
    share = (weights[0] + 0.02).double().cpu()
    share /= share.sum()
    inside = torch.bucketize(drawn.cpu().flatten(), edges[0].cpu()) - 1
    found = torch.bincount(inside, minlength=12).double() / drawn.numel()
    close(found, share, 0, 4 * 0.5 / math.sqrt(drawn.numel()))  # 4 standard deviations of independent draws; strata vary less
    middle, _ = raysampling.resample(edges, logit, near, far, count, torch.full_like(near, 0.5), wanted, padding=0.02)
    cumulative = torch.cat([torch.zeros(1).double(), share.cumsum(0)])
    quantile = (torch.arange(wanted + 1).double() + 0.5) / (wanted + 1)
    k = torch.searchsorted(cumulative, quantile, right=True) - 1
    exact = edges[0].cpu()[k] + (quantile - cumulative[k]) / share[k] * edges[0].cpu().diff()[k]
    close(middle[17], exact, 0, 1e-5)


@EVERYWHERE
@pytest.mark.parametrize("logit", [-1e4, math.nan])
def test_no_weight_or_nan_gives_even_edges(logit, device):
    data = problem(rays=8, intervals=20, used=5, device=device)
    given = data["edges"], torch.full((8, 20), logit, device=device), *on_the_way(data).values()
    edges, weights = raysampling.resample(*given, torch.full((8,), 0.25, device=device), 9, padding=0.0)
    first, last = data["edges"][:, :1], data["edges"][:, -1:]
    close(edges, (first + (torch.arange(10, device=device) + 0.25) / 10 * (last - first)).cpu(), 1e-6, 0)
    lone = weights.cpu()[with_samples(data)]
    assert lone.isnan().all() if math.isnan(logit) else not weights.any()


@EVERYWHERE
def test_infinite_density_and_odd_noise(device):
    data = problem(rays=6, intervals=10, used=2, device=device)
    logit = torch.full((6, 10), -3.0, device=device)
    logit[:, 4] = math.inf
    noise = torch.tensor([-5.0, 7.0, math.nan, 0.5, 0.5, 0.5], device=device)
    edges, weights = raysampling.resample(data["edges"], logit, **on_the_way(data), noise=noise, intervals=30)
    held = torch.tensor([0.0, 1.0, 0.5, 0.5, 0.5, 0.5], device=device)
    assert torch.equal(edges, raysampling.resample(data["edges"], logit, **on_the_way(data), noise=held, intervals=30)[0])
    assert edges.isfinite().all() and not weights[:, 5:].any()
    close(weights[:2].sum(1), torch.ones(2))
    gradient, loss = raysampling.interlevel_loss(data["edges"], weights.flip(1), data["edges"], logit, **on_the_way(data))
    assert gradient.isfinite().all() and loss.isfinite().all()


def level_pair(rays, intervals_ref, intervals, dtype=torch.float32, logits=torch.float32, used=None, device="cpu"):
    """Arguments of interlevel_loss; some edges are common to both levels."""
    data = problem(rays, intervals, used=used, dtype=dtype, device=device)
    edges_ref = some_edges(rays, intervals_ref, seed=21, dtype=dtype)
    shared = min(intervals_ref, intervals) // 2
    edges_ref[:, :shared] = data["edges"][:, :shared].cpu()
    weights_ref = uniform(rays, intervals_ref, seed=22, dtype=dtype) ** 3
    weights_ref /= weights_ref.sum(1, keepdim=True)
    logit = some_logits(rays, intervals, dtype=logits, device=device)
    edges_ref = edges_ref.sort(1).values
    reference_level = {"edges_ref": edges_ref.to(device), "weights_ref": weights_ref.to(device)}
    return {**reference_level, "edges": data["edges"], "logit": logit, **on_the_way(data)}


@EVERYWHERE
@pytest.mark.parametrize("logits", [torch.float32, torch.float16])
@pytest.mark.parametrize(("intervals_ref", "intervals"), [*SIZES, (48, 256), (1, 1024), (1024, 1)])
def test_interlevel_matches_the_twin(intervals_ref, intervals, logits, device):
    data = level_pair(40, intervals_ref, intervals, logits=logits, device=device)
    gradient, loss = raysampling.interlevel_loss(**data)
    expected_gradient, expected_loss = reference.interlevel_loss(**doubled(data))
    assert loss.shape == (1,) and loss.item() > 0 and gradient.shape == (40, intervals)
    close(loss, expected_loss, 1e-4, 1e-9)
    close(gradient, expected_gradient, 2e-3, 1e-4 * expected_gradient.abs().max().item())
    assert not gradient.cpu()[~with_samples(data)].any() and (intervals_ref == 1 or gradient.any())
    flat = raysampling.interlevel_loss(**{**data, "logit": data["logit"].flatten()})[0]
    assert torch.equal(flat, gradient.flatten())


def test_interlevel_gradient_by_finite_differences():
    data = level_pair(9, 7, 12, torch.float64, torch.float64)
    gradient, loss = raysampling.interlevel_loss(**data)
    expected, expected_loss = reference.interlevel_loss(**data)
    close(gradient, expected, 1e-9, 1e-12)
    close(loss, expected_loss, 1e-12, 0)
    step = 1e-6
    for k in range(data["logit"].numel()):
        ends = []
        for sign in (1, -1):
            moved = data["logit"].clone()
            moved.view(-1)[k] += sign * step
            ends.append(raysampling.interlevel_loss(**{**data, "logit": moved})[1])
        assert ((ends[0] - ends[1]) / (2 * step)).item() == pytest.approx(gradient.view(-1)[k].item(), rel=1e-5, abs=1e-8)


def test_interlevel_takes_the_slope_at_15():
    data = level_pair(3, 6, 6, torch.float64, torch.float64, used=2)
    data["near"][:], data["far"][:] = 0.1, 0.1 + 1e-8
    for logit, ratio in ((16.0, math.exp(-1)), (-16.0, math.e)):
        data["logit"][:] = logit
        data["weights_ref"] = torch.full_like(data["weights_ref"], 0.5)
        plain = data["logit"].clone().requires_grad_()
        with torch.enable_grad():
            weights = reference.weights_of(plain.exp(), reference.lengths_of(data["edges"], *on_the_way(data).values()))
            begins_before = data["edges"][:, None, :-1] < data["edges_ref"][:, 1:, None]
            overlapping = begins_before & (data["edges"][:, None, 1:] > data["edges_ref"][:, :-1, None])
            bound = (overlapping * weights[:, None]).sum(2)
            loss = ((data["weights_ref"] - bound).clamp(min=0).square() / (data["weights_ref"] + 1e-7))[:2].sum() / 2
        (exact,) = torch.autograd.grad(loss, plain)
        close(raysampling.interlevel_loss(**data)[0], exact * ratio, 1e-5, 1e-12)


@EVERYWHERE
def test_interlevel_is_zero_where_the_proposal_covers(device):
    data = level_pair(20, 16, 16, used=20, device=device)
    data["edges_ref"] = data["edges"]
    data["weights_ref"] = reference.weights_of(data["logit"].exp(), reference.lengths_of(data["edges"], *on_the_way(data).values()))
    gradient, loss = raysampling.interlevel_loss(**data)
    assert loss.item() < 1e-10 and gradient.abs().max() < 1e-6
    data["weights_ref"] = data["weights_ref"] / 2
    gradient, loss = raysampling.interlevel_loss(**data)
    assert loss.item() == 0 and not gradient.any()


@EVERYWHERE
def test_descent_teaches_the_proposal(device):
    data = level_pair(30, 24, 32, used=30, device=device)
    data["logit"].fill_(-3)
    before = raysampling.interlevel_loss(**data)[1].item()
    optimiser = torch.optim.Adam([data["logit"]], lr=0.1)
    for _ in range(200):
        data["logit"].grad = raysampling.interlevel_loss(**data)[0]
        optimiser.step()
    assert raysampling.interlevel_loss(**data)[1].item() < 0.05 * before


@EVERYWHERE
def test_a_nan_spoils_its_own_ray_alone(device):
    data = level_pair(20, 8, 12, used=20, device=device)
    clean, _ = raysampling.interlevel_loss(**data)
    others = torch.arange(20, device=device) != 10
    for name in ("logit", "weights_ref"):
        spoiled = {**data, name: data[name].clone()}
        spoiled[name][10, 3] = math.nan
        gradient, loss = raysampling.interlevel_loss(**spoiled)
        assert loss.isnan().all() and gradient[10].isnan().any() and torch.equal(gradient[others], clean[others])


@EVERYWHERE
@pytest.mark.parametrize(("rays", "used"), [(0, 0), (0, 7), (30, 0), (30, -4), (30, 10**9), (1, 1)])
def test_little_and_nothing(rays, used, device):
    data = level_pair(rays, 5, 9, used=used, device=device)
    placing = problem(rays, 9, used=used, device=device)
    has = int(with_samples(placing).sum())
    *_, dt, ray_index = raysampling.place_samples(**placing, contract=True, last_open=True)
    assert len(dt) == 9 * rays and (ray_index >= 0).sum() == 9 * has and (dt == 1e10).sum() == has
    edges, weights = raysampling.resample(data["edges"], data["logit"], **on_the_way(data), noise=data["near"], intervals=4)
    assert edges.shape == (rays, 5) and weights.shape == (rays, 9) and (weights.any(1).sum() == has)
    gradient, loss = raysampling.interlevel_loss(**data)
    assert gradient.shape == (rays, 9) and (loss.item() > 0) == (has > 0) and bool(gradient.any()) == (has > 0)


def test_any_layout_is_taken_and_no_graph_is_recorded():
    data = level_pair(12, 6, 8)
    spread = {name: torch.stack([value, value], -1)[..., 0] for name, value in data.items() if name != "count"}
    spread["logit"].requires_grad_()
    for ours, expected in zip(raysampling.interlevel_loss(**spread, count=data["count"]), raysampling.interlevel_loss(**data), strict=True):
        assert torch.equal(ours, expected) and not ours.requires_grad
    noise = uniform(12)
    given = [spread[name] for name in ("edges", "logit", "near", "far")]
    ours = raysampling.resample(*given, data["count"], torch.stack([noise, noise], 1)[:, 0], 5)
    plain = raysampling.resample(data["edges"], data["logit"], **on_the_way(data), noise=noise, intervals=5)
    assert all(torch.equal(one, other) and not one.requires_grad for one, other in zip(ours, plain, strict=True))


def test_repeats_to_the_bit_on_any_number_of_threads():
    data, threads = level_pair(300, 20, 30), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = raysampling.interlevel_loss(**data)
        torch.set_num_threads(2)
        second = raysampling.interlevel_loss(**data)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    data, levels = problem(rays=5, intervals=4, used=4, dtype=dtype), level_pair(5, 3, 4, dtype, dtype, used=4)
    noise, anneal = uniform(5, dtype=dtype), torch.full((1,), 0.5, dtype=dtype)
    given = [levels[name] for name in ("edges", "logit", "near", "far", "count")]
    torch.library.opcheck(torch.ops.raysampling.place_samples, (*data.values(), True, True))
    torch.library.opcheck(torch.ops.raysampling.resample, (*given, noise, 6, 0.01, None))
    torch.library.opcheck(torch.ops.raysampling.resample, (*given, noise[:, None].expand(5, 7), 6, 0.01, anneal))
    torch.library.opcheck(torch.ops.raysampling.interlevel_loss, tuple(levels.values()))


PLACING = {**problem(rays=4, intervals=5), "contract": True, "last_open": False}
RESAMPLING = {**pick(level_pair(4, 3, 5), "edges", "logit", "near", "far", "count"), "noise": torch.rand(4), "intervals": 6}
INTERLEVEL = level_pair(4, 3, 5)


@compiled
@pytest.mark.parametrize(
    ("function", "good", "name", "value", "kind"),
    [
        *[(raysampling.place_samples, PLACING, *bad) for bad in (
            ("edges", torch.rand(4, 1), ValueError), ("edges", torch.rand(24), ValueError), ("edges", torch.rand(4, 1026), ValueError),
            ("edges", torch.rand(4, 6).half(), TypeError), ("origins", torch.rand(4, 2), ValueError),
            ("origins", torch.rand(4, 3).double(), TypeError), ("directions", torch.rand(3, 3), ValueError),
            ("near", torch.rand(4, 1), ValueError), ("far", torch.rand(5), ValueError), ("count", torch.tensor([4]), TypeError),
            ("count", torch.tensor(4, dtype=torch.int32), ValueError),
        )],
        *[(raysampling.resample, RESAMPLING, *bad) for bad in (
            ("logit", torch.rand(4, 6), ValueError), ("logit", torch.rand(4, 5).double(), TypeError),
            ("logit", torch.ones(4, 5, dtype=torch.int32), TypeError), ("noise", torch.rand(5), ValueError),
            ("noise", torch.rand(4, 6), ValueError), ("noise", torch.rand(4).half(), TypeError), ("intervals", 0, ValueError),
            ("intervals", 1025, ValueError), ("padding", -0.1, ValueError), ("padding", math.nan, ValueError),
            ("padding", math.inf, ValueError), ("anneal", torch.rand(2), ValueError), ("anneal", torch.rand(1).double(), TypeError),
        )],
        *[(raysampling.interlevel_loss, INTERLEVEL, *bad) for bad in (
            ("edges_ref", torch.rand(5, 4), ValueError), ("edges_ref", torch.rand(4, 4).double(), TypeError),
            ("edges_ref", torch.rand(4, 1), ValueError), ("weights_ref", torch.rand(4, 4), ValueError),
            ("weights_ref", torch.rand(4, 3).half(), TypeError), ("edges", torch.rand(4, 5, 1), ValueError),
            ("logit", torch.rand(21), ValueError), ("near", torch.rand(3), ValueError),
        )],
    ],
)  # fmt: skip
def test_bad_arguments_are_named(function, good, name, value, kind):
    with pytest.raises(kind, match=f"^{name} "):
        function(**{**good, name: value})
