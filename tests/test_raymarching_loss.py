"""The loss kernel: values and gradient against twin, autograd and finite differences; padding, stops, hostile input; CUDA likewise."""

import math
from types import SimpleNamespace

import pytest
import torch

import raymarching
from conftest import no_host_waits
from nerf import losses, volume
from raymarching import ops, reference, reference_loss

compiled = pytest.mark.skipif(ops.kernels is reference, reason="no compiler: the kernels are their own twin")
EVERYWHERE = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-5}  # of the largest gradient; half is widened first


def problem(rays=60, kept=50, longest=90, dtype=torch.float32, seed=0, density=1.5, columns=3, padding=7, device="cpu"):
    """Rays as the march packs them: the kept ones in order and without gaps, then some that did not fit, then padding."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(real)

    real = torch.float64 if dtype == torch.float64 else torch.float32
    count = torch.randint(0, longest + 1, (rays,), generator=generator)
    count[:2] = torch.tensor([0, longest])[:rays]
    count[kept:] = 0
    used = int(count.sum())
    first = torch.where(torch.arange(rays) < kept, count.cumsum(0) - count, 0)
    raw = torch.randn(used + padding, 4, generator=generator, dtype=torch.float64) * 2
    raw[:, 0] += density
    dt = uniform(used + padding) * 0.1 + 0.01
    data = {
        "raw": raw.to(dtype),
        "dt": dt,
        "rays": torch.stack([first, count], 1).int(),
        "counts": torch.tensor([used, kept, used + 1000], dtype=torch.int32),
        "target": uniform(rays, columns),
        "background": uniform(rays, 3),
    }
    return {name: value.to(device) for name, value in data.items()}


def twin(data, T_thresh, entropy_weight=0.0, spacing=None, distortion_weight=0.0, t=None, near_scale=0.0, want_weights=False):
    """The twin in float64, rounded."""

    def exact(value):
        return value.double() if value is not None and value.is_floating_point() else value

    options = exact(spacing), distortion_weight, exact(t), near_scale, want_weights
    results = reference_loss.composite_loss(*(exact(value) for value in data.values()), T_thresh, entropy_weight, *options)
    return [result.to(data["dt"].dtype) for result in results[: 3 if want_weights else 2]]


def by_autograd(data, T_thresh, entropy_weight=0.0):
    """The training step's own composition of the differentiable pieces, in float32."""
    raw = data["raw"].float().requires_grad_()
    kept = torch.arange(len(data["rays"])) < data["counts"][1]
    seen = volume.composite(raw, SimpleNamespace(t=torch.ones_like(data["dt"]), dt=data["dt"]), SimpleNamespace(rays=data["rays"]), T_thresh)
    target, background = data["target"][:, :3], data["background"]
    if data["target"].shape[1] == 4:
        target = target * data["target"][:, 3:] + background * (1 - data["target"][:, 3:])
    error = losses.pixel_loss(seen.features + (1 - seen.opacity)[:, None] * background, target, kept)
    loss = error + entropy_weight * losses.opacity_entropy(seen.opacity, kept)
    return torch.autograd.grad(loss, raw)[0], torch.stack([loss, error]).detach()


def assert_same(ours, theirs, tolerance):
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype and one.isfinite().all()
        largest = other.abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * largest)


@EVERYWHERE
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("columns, entropy_weight, T_thresh", [(3, 0.0, 1e-4), (4, 0.0, 0.0), (3, 0.1, 0.3), (4, 0.01, 1e-4)])
def test_equals_the_twin(device, dtype, columns, entropy_weight, T_thresh):
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("float64 is for the CPU")
    for longest in (5, 32, 33, 300):
        data = problem(dtype=dtype, columns=columns, longest=longest, device=device, density=1.5 if longest < 300 else -0.5)
        ours = raymarching.composite_loss(**data, T_thresh=T_thresh, entropy_weight=entropy_weight)
        assert ours[0].shape == data["raw"].shape and ours[1].shape == (2,) and ours[0].dtype == ours[1].dtype == data["dt"].dtype
        assert_same(ours, twin(data, T_thresh, entropy_weight), TOLERANCE[dtype])


@pytest.mark.parametrize("columns", [3, 4])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_equals_autograd_through_compositing_and_losses(columns, entropy_weight, dtype):
    data = problem(columns=columns, dtype=dtype)
    ours = raymarching.composite_loss(**data, T_thresh=1e-4, entropy_weight=entropy_weight)
    assert_same(ours, by_autograd(data, 1e-4, entropy_weight), 2e-5)


@pytest.mark.parametrize("entropy_weight", [0.0, 0.1])
def test_gradient_is_the_difference_quotient(entropy_weight):
    data = problem(rays=7, kept=5, longest=6, dtype=torch.float64, columns=4)

    def loss(raw):
        return raymarching.composite_loss(**{**data, "raw": raw}, T_thresh=0.0, entropy_weight=entropy_weight)[1][0]

    delta = raymarching.composite_loss(**data, T_thresh=0.0, entropy_weight=entropy_weight)[0]
    step = 1e-5
    for index in range(data["raw"].numel()):
        shift = torch.zeros_like(data["raw"]).view(-1).index_fill_(0, torch.tensor(index), step).view_as(data["raw"])
        quotient = (loss(data["raw"] + shift) - loss(data["raw"] - shift)) / (2 * step)
        assert math.isclose(quotient, delta.view(-1)[index], rel_tol=1e-6, abs_tol=1e-9)


def test_one_sample_by_hand():
    data = {
        "raw": torch.tensor([[math.log(2.0), 0.0, 1000.0, -1000.0]]),
        "dt": torch.tensor([0.5]),
        "rays": torch.tensor([[0, 1]], dtype=torch.int32),
        "counts": torch.tensor([1, 1, 1], dtype=torch.int32),
        "target": torch.tensor([[0.0, 0.5, 1.0]]),
        "background": torch.tensor([[1.0, 0.0, 0.0]]),
    }
    delta, numbers = raymarching.composite_loss(**data, T_thresh=1e-4, entropy_weight=1.0)
    w = 1 - math.exp(-1)
    error = [w * 0.5 + (1 - w), w - 0.5, -1.0]
    squared = sum(e * e for e in error) / 3
    entropy = -w * math.log2(w) - (1 - w) * math.log2(1 - w)
    at_weight = 2 / 3 * (error[0] * -0.5 + error[1]) + math.log2(1 - w) - math.log2(w)
    torch.testing.assert_close(numbers, torch.tensor([squared + entropy, squared]))
    torch.testing.assert_close(delta, torch.tensor([[at_weight * math.exp(-1), 2 / 3 * error[0] * w / 4, 0, 0]]))


@EVERYWHERE
def test_rows_that_change_nothing_are_zero(device):
    """Padding, rows behind the stop and rows of rays that are not kept; memory that is used again shows what is left unwritten."""
    data = problem(density=4.0, longest=200, device=device, padding=5000)
    used = int(data["counts"][0])
    dirty = torch.full((len(data["raw"]), 4), math.nan, device=device)
    del dirty
    delta = raymarching.composite_loss(**data, T_thresh=0.05)[0]
    assert delta.isfinite().all() and (delta[used:] == 0).all()
    weights = raymarching.composite_rays_train(
        data["raw"][:, 0].exp(), data["raw"][:, 1:].sigmoid(), torch.ones_like(data["dt"]), data["dt"], data["rays"], 0.05
    )[3]
    behind = weights == 0
    assert behind[:used].sum() > 1000 and (delta[behind] == 0).all() and (delta[~behind].abs().sum(1) > 0).all()


@EVERYWHERE
def test_rays_that_do_not_fit_and_no_rays_at_all(device):
    data = problem(device=device)
    none = {**data, "counts": torch.tensor([0, 0, 9999], dtype=torch.int32, device=device)}
    nobody = {**data, **{name: data[name][:0] for name in ("rays", "target", "background")}, "counts": none["counts"]}
    nothing = {**nobody, **{name: data[name][:0] for name in ("raw", "dt")}}
    for case in (none, nobody, nothing):
        delta, numbers = raymarching.composite_loss(**case, T_thresh=1e-4, entropy_weight=0.1)
        assert delta.shape == case["raw"].shape and not delta.any() and numbers.tolist() == [0, 0]
        assert_same((delta, numbers), twin(case, 1e-4, 0.1), 0)
    data["target"][50:], data["background"][50:] = math.nan, math.nan  # of rays that are not kept: not read
    assert all(result.isfinite().all() for result in raymarching.composite_loss(**data, T_thresh=1e-4))


@EVERYWHERE
def test_rays_that_miss_show_the_background(device):
    data = problem(rays=40, kept=40, longest=0, padding=3, device=device)
    delta, numbers = raymarching.composite_loss(**data, T_thresh=1e-4)
    assert not delta.any()
    torch.testing.assert_close(numbers, (data["background"] - data["target"]).square().mean().expand(2))


@EVERYWHERE
def test_the_entropy_is_flat_at_the_ends(device):
    """Opaque and empty rays have no gradient of entropy, and the least entropy."""
    data = problem(rays=4, kept=4, longest=8, device=device)
    data["background"][:] = data["target"]
    for density in (100.0, -100.0):
        data["raw"][:, 0] = density
        plain, with_entropy = (raymarching.composite_loss(**data, T_thresh=0.0, entropy_weight=weight) for weight in (0.0, 1.0))
        assert torch.equal(plain[0], with_entropy[0])
        assert 0 < with_entropy[1][0] - with_entropy[1][1] < 3e-4


@EVERYWHERE
def test_infinite_density_is_opaque_with_finite_gradients(device):
    data = problem(device=device)
    data["raw"][3::17, 0] = 200.0
    data["raw"][4::19, 0] = math.inf
    data["raw"][5::19, 0] = -math.inf
    data["raw"][6::23, 1:] = math.inf
    data["raw"][7::23, 1:] = -math.inf
    data["dt"][3::34] = 0
    for T_thresh in (0.0, 1e-4):
        ours = raymarching.composite_loss(**data, T_thresh=T_thresh, entropy_weight=0.1)
        assert_same(ours, twin(data, T_thresh, 0.1), 2e-5)


@EVERYWHERE
@pytest.mark.parametrize("column", [0, 2])
def test_nan_spoils_the_numbers_and_its_own_ray_alone(device, column):
    data = problem(device=device)
    clean = raymarching.composite_loss(**data, T_thresh=1e-4)
    first, count = data["rays"][1].tolist()
    data["raw"][first + 2, column] = math.nan
    delta, numbers = raymarching.composite_loss(**data, T_thresh=1e-4)
    assert numbers.isnan().all() and delta[first : first + count].isnan().any()
    others = torch.cat([torch.arange(first), torch.arange(first + count, len(delta))])
    assert torch.equal(delta[others], clean[0][others])


@EVERYWHERE
def test_rows_and_counts_that_fit_nothing_do_no_harm(device):
    data = problem(device=device)
    data["rays"][1:5] = torch.tensor([[-1, 3], [10**6, 3], [0, 2**31 - 1], [0, -4]], device=device).int()
    for counts in (data["counts"].tolist(), [10**9, 10**9, 0], [-5, -5, 0], [3, 10**9, 0]):
        data["counts"] = torch.tensor(counts, dtype=torch.int32, device=device)
        numbers = raymarching.composite_loss(**data, T_thresh=1e-4)[1]
        torch.testing.assert_close(numbers, twin(data, 1e-4)[1], rtol=1e-5, atol=0)


@EVERYWHERE
def test_any_layout_and_any_offset_is_taken(device):
    for dtype in (torch.float32, torch.float16):
        data = problem(dtype=dtype, device=device)
        expected = raymarching.composite_loss(**data, T_thresh=1e-4)
        shifted = torch.cat([data["raw"].new_zeros(1), data["raw"].flatten()])[1:].view(-1, 4)
        for raw in (data["raw"].t().contiguous().t(), shifted):
            ours = raymarching.composite_loss(**{**data, "raw": raw, "target": data["target"].t().contiguous().t()}, T_thresh=1e-4)
            assert torch.equal(ours[0], expected[0])
            torch.testing.assert_close(ours[1], expected[1])


def test_repeats_to_the_bit_on_any_number_of_threads():
    data, threads = problem(rays=3000, kept=2900, longest=20), torch.get_num_threads()
    first = raymarching.composite_loss(**data, T_thresh=1e-4)
    try:
        torch.set_num_threads(1)
        second = raymarching.composite_loss(**data, T_thresh=1e-4)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(first, second))


def test_records_no_graph():
    data = problem()
    data["raw"].requires_grad_()
    assert not any(result.requires_grad for result in raymarching.composite_loss(**data, T_thresh=1e-4))


@compiled
def test_opcheck():
    for dtype in (torch.float32, torch.float16, torch.float64):
        data = problem(rays=5, kept=4, longest=6, dtype=dtype)
        M, real = len(data["raw"]), data["dt"].dtype
        spacing, t = torch.rand(M, 2, dtype=real), torch.rand(M, dtype=real)
        for options in ((None, 0.0, None, 0.0, False), (spacing, 0.1, t, 0.5, True)):
            torch.library.opcheck(torch.ops.raymarching.composite_loss, (*data.values(), 1e-4, 0.1, *options))


@pytest.mark.parametrize(
    "change, error, word",
    [
        ({"raw": [1.0]}, TypeError, "raw must be a tensor"),
        ({"raw": torch.zeros(4, 4).int()}, TypeError, "raw must be torch.float32"),
        ({"raw": torch.zeros(4, 3)}, ValueError, "raw must have the shape"),
        ({"raw": torch.zeros(4)}, ValueError, "raw must have the shape"),
        ({"dt": torch.zeros(5)}, ValueError, "dt must have the shape"),
        ({"dt": torch.zeros(4).double()}, TypeError, "dt must be torch.float32"),
        ({"dt": torch.zeros(4, device="meta")}, ValueError, "dt is on meta"),
        ({"rays": torch.zeros(2, 2)}, TypeError, "rays must be torch.int32"),
        ({"rays": torch.zeros(2, 3).int()}, ValueError, "rays must have the shape"),
        ({"rays": torch.zeros(2, 2, device="meta").int()}, ValueError, "rays is on meta"),
        ({"counts": torch.zeros(2).int()}, ValueError, "counts must have the shape"),
        ({"counts": torch.zeros(3).long()}, TypeError, "counts must be torch.int32"),
        ({"target": torch.zeros(2, 5)}, ValueError, "target must have 3 columns"),
        ({"target": torch.zeros(3, 3)}, ValueError, "target must have the shape"),
        ({"target": torch.zeros(2, 3).half()}, TypeError, "target must be torch.float32"),
        ({"background": torch.zeros(2, 4)}, ValueError, "background must have the shape"),
        ({"entropy_weight": -1.0}, ValueError, "entropy_weight must be at least 0"),
        ({"entropy_weight": math.nan}, ValueError, "entropy_weight must be at least 0"),
        ({"distortion_weight": -1.0}, ValueError, "distortion_weight must be at least 0"),
        ({"distortion_weight": math.inf}, ValueError, "distortion_weight must be finite"),
        ({"distortion_weight": 0.1}, ValueError, "spacing is needed with distortion_weight"),
        ({"spacing": torch.zeros(4)}, ValueError, "spacing must have the shape"),
        ({"spacing": torch.zeros(3, 2)}, ValueError, "spacing must have the shape"),
        ({"spacing": torch.zeros(4, 2).half()}, TypeError, "spacing must be torch.float32"),
        ({"spacing": torch.zeros(4, 2, device="meta")}, ValueError, "spacing is on meta"),
        ({"near_scale": math.nan}, ValueError, "near_scale must be at least 0"),
        ({"near_scale": math.inf}, ValueError, "near_scale must be finite"),
        ({"near_scale": 0.1}, ValueError, "t is needed with near_scale"),
        ({"t": torch.zeros(5)}, ValueError, "t must have the shape"),
        ({"t": [0.0] * 4}, TypeError, "t must be a tensor"),
    ],
)
def test_bad_arguments_are_named(change, error, word):
    good = {
        "raw": torch.zeros(4, 4),
        "dt": torch.zeros(4),
        "rays": torch.zeros(2, 2).int(),
        "counts": torch.zeros(3).int(),
        "target": torch.zeros(2, 3),
        "background": torch.zeros(2, 3),
    }
    with pytest.raises(error, match=word):
        raymarching.composite_loss(**{**good, **change}, T_thresh=1e-4)


@pytest.mark.gpu
def test_cuda_refuses_double():
    with pytest.raises(TypeError, match="raw must be torch.float32 or torch.float16 on a GPU"):
        raymarching.composite_loss(**problem(dtype=torch.float64, device="cuda"), T_thresh=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_cuda_strides_over_more_rays_than_warps(dtype):
    data = problem(rays=70000, kept=65000, longest=40, dtype=dtype, device="cuda")
    first, second = (raymarching.composite_loss(**data, T_thresh=0.0, entropy_weight=0.01) for _ in range(2))  # no stop to round about
    assert_same(first, twin(data, 0.0, 0.01), 1e-4)
    assert torch.equal(first[0], second[0])


@pytest.mark.gpu
def test_cuda_honours_the_current_stream_and_never_waits():
    data, stream = problem(), torch.cuda.Stream()
    pinned = {name: value.pin_memory() for name, value in data.items()}
    late = {name: torch.zeros_like(value, device="cuda") for name, value in data.items()}
    busy = torch.randn(4000, 4000, device="cuda")
    torch.cuda.synchronize()
    with no_host_waits(), torch.cuda.stream(stream):
        for _ in range(20):
            busy = busy @ busy  # the inputs come late: a kernel on another stream would not see them
        for name, value in pinned.items():
            late[name].copy_(value, non_blocking=True)
        ours = raymarching.composite_loss(**late, T_thresh=1e-4)
    stream.synchronize()
    assert_same([result.cpu() for result in ours], twin(data, 1e-4), 2e-5)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")
def test_cuda_honours_a_second_device():
    data = problem(device="cuda:1")
    ours = raymarching.composite_loss(**data, T_thresh=1e-4)
    assert torch.cuda.current_device() == 0 and all(result.device.index == 1 for result in ours)
    assert_same(ours, twin(data, 1e-4), 2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_cuda_replays_in_a_graph_with_other_inputs(dtype):
    """Other values, other rays and other counts in the same memory; what a replay before has left must not show."""
    data = problem(dtype=dtype, device="cuda", seed=1)
    rows = len(data["raw"])
    raymarching.composite_loss(**data, T_thresh=1e-4, entropy_weight=0.1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = raymarching.composite_loss(**data, T_thresh=1e-4, entropy_weight=0.1)
    for kept in (50, 20, 0, 35):
        other = problem(dtype=dtype, kept=kept, padding=0, seed=1)
        for name, value in other.items():
            data[name][: len(value)].copy_(value)
        data["counts"][2] = 12345
        graph.replay()
        assert len(other["raw"]) <= rows
        assert_same(captured, twin(data, 1e-4, 0.1), 2e-5)
