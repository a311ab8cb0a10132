"""The loss kernel's options: distortion, fading near the camera, weights. Against twin, definition and differences; CUDA likewise."""

import math
from types import SimpleNamespace

import pytest
import torch

import raymarching
from nerf import losses, volume
from test_raymarching_loss import EVERYWHERE, TOLERANCE, assert_same, problem, twin

DISTORTION, FADING, WEIGHTS = {"distortion_weight": 3.0}, {"near_scale": 1.5}, {"want_weights": True}
OPTIONS = pytest.mark.parametrize(
    "options", [DISTORTION, FADING, WEIGHTS, DISTORTION | FADING | WEIGHTS], ids=["distortion", "fading", "weights", "all"]
)


def along(data, options, seed=5, apart=0.0):
    """The options with their tensors: intervals that ascend along each ray within [apart, 1], with gaps, and distances of 0 to 3."""
    generator, count = torch.Generator().manual_seed(seed), len(data["raw"])
    spacing = torch.zeros(count, 2, dtype=torch.float64)
    for first, length in data["rays"].tolist():
        edges = torch.rand(2 * length, generator=generator, dtype=torch.float64).sort().values
        spacing[first : first + length] = apart + (1 - apart) * edges.view(-1, 2)
    tensors = {"spacing": spacing, "t": torch.rand(count, generator=generator, dtype=torch.float64) * 3}
    needed = [name for name, number in (("spacing", "distortion_weight"), ("t", "near_scale")) if number in options]
    return options | {name: tensors[name].to(data["dt"]) for name in needed}


def by_definition(data, spacing, T_thresh, entropy_weight, distortion_weight):
    """(gradient at raw, [loss, squared error], weights), by autograd through compositing and the losses' definitions."""
    raw = data["raw"].clone().requires_grad_()
    kept = torch.arange(len(data["rays"])) < data["counts"][1]
    samples = SimpleNamespace(t=torch.ones_like(data["dt"]), dt=data["dt"])
    if raw.dtype == torch.float64:  # the trainer's own composition is float32 throughout
        seen = volume.Composited(
            *raymarching.composite_rays_train(raw[:, 0].exp(), raw[:, 1:].sigmoid(), samples.t, samples.dt, data["rays"], T_thresh)
        )
    else:
        seen = volume.composite(raw, samples, SimpleNamespace(rays=data["rays"]), T_thresh)
    error = losses.pixel_loss(seen.features + (1 - seen.opacity)[:, None] * data["background"], data["target"], kept)
    ray_index = raymarching.flatten_rays(data["rays"], len(raw))
    loss = error + entropy_weight * losses.opacity_entropy(seen.opacity, kept)
    loss = loss + distortion_weight * losses.distortion(seen.weights, spacing, ray_index, kept)
    return torch.autograd.grad(loss, raw)[0], torch.stack([loss, error]).detach(), seen.weights.detach()


@EVERYWHERE
@OPTIONS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("entropy_weight, T_thresh", [(0.0, 0.0), (0.1, 0.3)])
def test_equals_the_twin(device, options, dtype, entropy_weight, T_thresh):
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("float64 is for the CPU")
    for longest in (1, 32, 33, 300):
        data = problem(dtype=dtype, longest=longest, device=device, density=1.5 if longest < 300 else -0.5)
        given = along(data, options)
        ours = raymarching.composite_loss(**data, T_thresh=T_thresh, entropy_weight=entropy_weight, **given)
        assert [len(result) for result in ours] == [len(data["raw"]), 2] + [len(data["raw"])] * ("want_weights" in options)
        assert_same(ours, twin(data, T_thresh, entropy_weight, **given), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("entropy_weight, T_thresh", [(0.0, 1e-4), (0.1, 0.0)])
def test_equals_autograd_through_the_definitions(dtype, entropy_weight, T_thresh):
    data = problem(dtype=dtype)
    given = along(data, DISTORTION | WEIGHTS)
    ours = raymarching.composite_loss(**data, T_thresh=T_thresh, entropy_weight=entropy_weight, **given)
    theirs = by_definition(data, given["spacing"], T_thresh, entropy_weight, given["distortion_weight"])
    assert_same(ours, theirs, {torch.float64: 1e-12, torch.float32: 2e-5}[dtype])


def test_gradient_is_the_difference_quotient():
    data = problem(rays=7, kept=5, longest=6, dtype=torch.float64)
    given = along(data, DISTORTION)

    def loss(raw):
        return raymarching.composite_loss(**{**data, "raw": raw}, T_thresh=0.0, **given)[1][0]

    delta = raymarching.composite_loss(**data, T_thresh=0.0, **given)[0]
    step = 1e-5
    for index in range(data["raw"].numel()):
        shift = torch.zeros_like(data["raw"]).view(-1).index_fill_(0, torch.tensor(index), step).view_as(data["raw"])
        quotient = (loss(data["raw"] + shift) - loss(data["raw"] - shift)) / (2 * step)
        assert math.isclose(quotient, delta.view(-1)[index], rel_tol=1e-6, abs_tol=1e-9)


@EVERYWHERE
def test_distortion_of_a_thin_surface(device):
    """All intervals in the last thousandth, where float32 sums keep 1e-7: a part in some thousands of what is left."""
    data = problem(rays=30, kept=30, longest=70, device=device)
    data["raw"][:, 1:], data["target"][:], data["background"][:] = 0, 0.5, 0.5  # no error in colour: the distortion is all
    given = along(data, {"distortion_weight": 1000.0}, apart=0.999)
    delta, numbers = raymarching.composite_loss(**data, T_thresh=0.0, **given)
    exact = twin(data, 0.0, **given)
    torch.testing.assert_close(delta, exact[0], rtol=0, atol=1e-3 * exact[0].abs().max().item())
    torch.testing.assert_close(numbers[0], exact[1][0], rtol=2e-3, atol=0)


@EVERYWHERE
def test_the_first_two_results_do_not_change_with_what_is_asked_besides(device):
    data = problem(device=device)
    plain = raymarching.composite_loss(**data, T_thresh=1e-4)
    with_weights = raymarching.composite_loss(**data, T_thresh=1e-4, want_weights=True)
    unread = torch.full_like(data["dt"], math.nan)
    off = raymarching.composite_loss(**data, T_thresh=1e-4, t=unread, spacing=torch.stack([unread, unread], 1))
    assert torch.equal(plain[0], off[0])
    for other in (with_weights[:2], off):
        assert_same(other, plain, 2e-6)
    medium = data["raw"][:, 0].exp(), data["raw"][:, 1:].sigmoid(), torch.ones_like(data["dt"]), data["dt"], data["rays"]
    torch.testing.assert_close(with_weights[2], raymarching.composite_rays_train(*medium, 1e-4)[3])


@EVERYWHERE
def test_fading_scales_the_gradient_alone(device):
    data = problem(device=device)
    given = along(data, FADING)
    plain, faded = raymarching.composite_loss(**data, T_thresh=1e-4), raymarching.composite_loss(**data, T_thresh=1e-4, **given)
    factor = (given["t"] / given["near_scale"]).square().clamp(max=1)
    assert 0.1 < (factor < 1).float().mean() < 0.9
    torch.testing.assert_close(faded[0], plain[0] * factor[:, None])
    torch.testing.assert_close(faded[1], plain[1])


def test_distortion_of_two_samples_by_hand():
    half = math.log(math.log(2) / 0.5)  # an optical depth of log 2: the weights are 1/2 and 1/4
    data = {
        "raw": torch.tensor([[half, 0.0, 0.0, 0.0], [half, 0.0, 0.0, 0.0]]),
        "dt": torch.tensor([0.5, 0.5]),
        "rays": torch.tensor([[0, 2]], dtype=torch.int32),
        "counts": torch.tensor([2, 1, 2], dtype=torch.int32),
        "target": torch.full((1, 3), 0.5),
        "background": torch.full((1, 3), 0.5),
    }
    spacing = torch.tensor([[0.0, 0.2], [0.6, 1.0]])  # middles 0.1 and 0.8
    delta, numbers, weights = raymarching.composite_loss(**data, T_thresh=0.0, spacing=spacing, distortion_weight=2.0, want_weights=True)
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.25]))
    distortion = 2 * 0.5 * 0.25 * 0.7 + (0.25 * 0.2 + 0.0625 * 0.4) / 3
    torch.testing.assert_close(numbers, torch.tensor([2 * distortion, 0.0]))
    at_weight = [2 * 0.25 * 0.7 + 2 / 3 * 0.5 * 0.2, 2 * 0.5 * 0.7 + 2 / 3 * 0.25 * 0.4]
    at_depth = [0.5 * at_weight[0] - 0.25 * at_weight[1], 0.25 * at_weight[1]]
    torch.testing.assert_close(delta[:, 0], 2 * math.log(2) * torch.tensor(at_depth))


@EVERYWHERE
def test_rows_that_change_nothing_are_zero_and_unread(device):
    """Padding, rows behind the stop and rows of rays that are not kept; memory that is used again shows what is left unwritten."""
    data = problem(density=4.0, longest=200, device=device, padding=5000)
    given = along(data, DISTORTION | FADING | WEIGHTS)
    used = int(data["counts"][0])
    given["spacing"][used:], given["t"][used:] = math.nan, math.nan
    dirty = torch.full((len(data["raw"]), 5), math.nan, device=device)
    del dirty
    delta, numbers, weights = raymarching.composite_loss(**data, T_thresh=0.05, **given)
    assert numbers.isfinite().all() and (delta[used:] == 0).all() and (weights[used:] == 0).all()
    behind = weights == 0
    assert behind[:used].sum() > 1000 and (delta[behind] == 0).all() and (delta[~behind].abs().sum(1) > 0).all()
    given["spacing"][behind], given["t"][behind] = math.nan, math.nan
    again = raymarching.composite_loss(**data, T_thresh=0.05, **given)
    assert torch.equal(again[0], delta) and torch.equal(again[2], weights)


@EVERYWHERE
def test_no_rays_and_no_samples(device):
    data = problem(device=device)
    given = along(data, DISTORTION | FADING | WEIGHTS)
    none = {**data, "counts": torch.tensor([0, 0, 9999], dtype=torch.int32, device=device)}
    nobody = {**none, **{name: data[name][:0] for name in ("rays", "target", "background")}}
    nothing = {**nobody, **{name: data[name][:0] for name in ("raw", "dt")}}
    for case in (none, nobody, nothing):
        options = given | {name: given[name][: len(case["raw"])] for name in ("spacing", "t")}
        delta, numbers, weights = raymarching.composite_loss(**case, T_thresh=1e-4, **options)
        assert delta.shape == case["raw"].shape and weights.shape == case["dt"].shape
        assert not delta.any() and not weights.any() and numbers.tolist() == [0, 0]
        assert_same((delta, numbers, weights), twin(case, 1e-4, **options), 0)


@EVERYWHERE
def test_infinite_density_is_opaque_with_finite_gradients(device):
    data = problem(device=device)
    data["raw"][3::17, 0] = 200.0
    data["raw"][4::19, 0] = math.inf
    data["raw"][5::19, 0] = -math.inf
    data["dt"][3::34] = 0
    data["dt"][4::38] = 1e10  # an open last interval
    given = along(data, DISTORTION | FADING | WEIGHTS)
    for T_thresh in (0.0, 1e-4):
        assert_same(raymarching.composite_loss(**data, T_thresh=T_thresh, **given), twin(data, T_thresh, **given), 2e-5)


@EVERYWHERE
@pytest.mark.parametrize("spoiled", ["raw", "spacing", "t"])
def test_nan_spoils_its_own_ray_alone(device, spoiled):
    data = problem(device=device)
    given = along(data, DISTORTION | FADING | WEIGHTS)
    clean = raymarching.composite_loss(**data, T_thresh=0.0, **given)
    first, count = data["rays"][1].tolist()
    (given if spoiled in given else data)[spoiled][first + 2] = math.nan
    delta, numbers, weights = raymarching.composite_loss(**data, T_thresh=0.0, **given)
    assert numbers[0].isnan() == (spoiled != "t") and delta[first : first + count].isnan().any()
    others = torch.cat([torch.arange(first), torch.arange(first + count, len(delta))])
    assert torch.equal(delta[others], clean[0][others]) and torch.equal(weights[others], clean[2][others])


@EVERYWHERE
def test_any_layout_and_any_offset_is_taken(device):
    data = problem(device=device)
    given = along(data, DISTORTION | FADING | WEIGHTS)
    expected = raymarching.composite_loss(**data, T_thresh=1e-4, **given)
    shifted = torch.cat([given["spacing"].new_zeros(1), given["spacing"].flatten()])[1:].view(-1, 2)
    for spacing in (given["spacing"].t().contiguous().t(), shifted):
        strided = {"spacing": spacing, "t": torch.stack([given["t"]] * 2, 1)[:, 0]}
        ours = raymarching.composite_loss(**data, T_thresh=1e-4, **given | strided)
        assert torch.equal(ours[0], expected[0]) and torch.equal(ours[2], expected[2])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_cuda_strides_over_more_rays_than_warps(dtype):
    data = problem(rays=70000, kept=65000, longest=40, dtype=dtype, device="cuda")
    rows = len(data["raw"])
    first_row = data["rays"].long()[raymarching.flatten_rays(data["rays"], rows).clamp(min=0).long(), 0]
    edges = (torch.rand(2 * rows, device="cuda", dtype=torch.float64) / 100).cumsum(0).view(-1, 2)  # ascends over all rays
    tensors = {"spacing": (edges - edges[first_row, :1]).float(), "t": torch.rand(rows, device="cuda")}
    options = DISTORTION | FADING | WEIGHTS | tensors
    first, second = (raymarching.composite_loss(**data, T_thresh=0.0, **options) for _ in range(2))  # no stop to round about
    assert_same(first, twin(data, 0.0, **options), 1e-4)
    assert torch.equal(first[0], second[0]) and torch.equal(first[2], second[2])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_cuda_replays_in_a_graph_with_other_inputs(dtype):
    data = problem(dtype=dtype, device="cuda", seed=1)
    given = along(data, DISTORTION | FADING | WEIGHTS)
    raymarching.composite_loss(**data, T_thresh=1e-4, **given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = raymarching.composite_loss(**data, T_thresh=1e-4, **given)
    for kept in (50, 20, 0, 35):
        other = problem(dtype=dtype, kept=kept, padding=0, seed=1)
        for name, value in other.items():
            data[name][: len(value)].copy_(value)
        later = along(data, DISTORTION | FADING, seed=kept)
        given["spacing"].copy_(later["spacing"]), given["t"].copy_(later["t"])
        graph.replay()
        assert_same(captured, twin(data, 1e-4, **given), 2e-5)
