"""Compositing: values, the gradient through all four outputs, infinite density, and the in-place form of rendering."""

import math

import pytest
import torch

import raymarching
from raymarching import ops, reference

compiled = pytest.mark.skipif(ops.kernels is reference, reason="no compiler: the kernels are their own twin")


def medium(rays=50, channels=3, longest=90, dtype=torch.float32, seed=0, density=3.0):
    """Packed random samples with gaps between rays, empty rays, and padding at the end."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.randint(0, longest + 1, (rays,), generator=generator)
    count[:2] = torch.tensor([0, longest])
    first = (count + 2).cumsum(0) - count  # two rows between rays belong to none
    samples = int(first[-1] + count[-1]) + 5
    dt = torch.rand(samples, generator=generator, dtype=dtype) * 0.1 + 0.01
    return {
        "density": torch.rand(samples, generator=generator, dtype=dtype) ** 3 * density * 10,
        "features": torch.randn(samples, channels, generator=generator, dtype=dtype),
        "t": dt.cumsum(0) % 7,
        "dt": dt,
        "rays": torch.stack([first, count], 1).int(),
    }


def cotangents(outputs, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device) for x in outputs]


def gradients(function, data, T_thresh, chosen=(0, 1, 2, 3)):
    leaves = data["density"].clone().requires_grad_(), data["features"].clone().requires_grad_()
    outputs = function(*leaves, data["t"], data["dt"], data["rays"], T_thresh)
    weight = cotangents(outputs)
    grads = torch.autograd.grad([outputs[i] for i in chosen], leaves, [weight[i] for i in chosen], allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves)]


@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("T_thresh", [0.0, 1e-4, 0.2])
def test_forward_equals_the_twin(channels, T_thresh):
    data = medium(channels=channels)
    for one, other in zip(
        raymarching.composite_rays_train(**data, T_thresh=T_thresh), reference.composite_rays_train_forward(**data, T_thresh=T_thresh)
    ):
        assert torch.allclose(one, other, atol=2e-6)


def test_weights_sum_to_one_minus_the_transmittance_left():
    data = medium(dtype=torch.float64)
    _, opacity, _, weights = raymarching.composite_rays_train(**data, T_thresh=0.0)
    for i, (first, count) in enumerate(data["rays"].tolist()):
        rows = slice(first, first + count)
        left = torch.exp(-(data["density"][rows] * data["dt"][rows]).sum())
        assert math.isclose(weights[rows].sum(), 1 - left, abs_tol=1e-12) and math.isclose(opacity[i], 1 - left, abs_tol=1e-12)
    assert opacity[0] == 0


def test_stops_behind_the_sample_that_crosses_the_threshold():
    half = math.log(2.0)
    data = {
        "density": torch.full((6,), half),
        "features": torch.ones(6, 1),
        "t": torch.arange(6.0),
        "dt": torch.ones(6),
        "rays": torch.tensor([[0, 6]]).int(),
    }
    _, opacity, depth, weights = raymarching.composite_rays_train(**data, T_thresh=0.2)
    assert torch.allclose(weights, torch.tensor([0.5, 0.25, 0.125, 0, 0, 0]))
    assert torch.allclose(opacity, torch.tensor([0.875])) and torch.allclose(depth, torch.tensor([0.5]))
    grads = gradients(raymarching.composite_rays_train, data, 0.2)
    assert all((g[3:] == 0).all() and (g[:3] != 0).all() for g in grads)


@pytest.mark.parametrize("chosen", [(0, 1, 2, 3), (0,), (1,), (2,), (3,), (0, 3)], ids=str)
@pytest.mark.parametrize("T_thresh", [0.0, 1e-4, 0.3])
def test_gradient_equals_the_twins(chosen, T_thresh):
    for dtype, tolerance in [(torch.float64, 1e-12), (torch.float32, 2e-5)]:
        data = medium(dtype=dtype)
        ours = gradients(raymarching.composite_rays_train, data, T_thresh, chosen)
        twin = gradients(reference.composite_rays_train_forward, data, T_thresh, chosen)
        assert all(torch.allclose(one, other, atol=tolerance, rtol=tolerance) for one, other in zip(ours, twin))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_gradcheck(channels):
    data = medium(rays=6, longest=7, channels=channels, dtype=torch.float64)
    leaves = data["density"].add(0.1).requires_grad_(), data["features"].requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: raymarching.composite_rays_train(*x, data["t"], data["dt"], data["rays"], 1e-4), leaves)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_half_is_composited_in_float32(device):
    data = {name: value.to(device) for name, value in medium().items()}
    half = {**data, "density": data["density"].half(), "features": data["features"].half()}
    widened = {**half, "density": half["density"].float(), "features": half["features"].float()}
    ours, theirs = (raymarching.composite_rays_train(**x, T_thresh=1e-4) for x in (half, widened))
    for one, other in zip(ours, theirs):
        assert one.dtype == torch.float32 and torch.equal(one, other)
    for one, other in zip(
        gradients(raymarching.composite_rays_train, half, 1e-4), gradients(reference.composite_rays_train_forward, widened, 1e-4)
    ):
        assert one.dtype == torch.float16 and torch.allclose(one.float(), other, atol=1e-4, rtol=1e-3)


def test_nan_stays_in_its_ray():
    data = medium(rays=6)
    clean = raymarching.composite_rays_train(**data, T_thresh=1e-4)
    data["features"][data["rays"][1, 0]] = math.nan
    spoilt = raymarching.composite_rays_train(**data, T_thresh=1e-4)
    assert spoilt[0][1].isnan().all() and not spoilt[0][2:].isnan().any()
    assert torch.equal(spoilt[0][2:], clean[0][2:]) and all(torch.equal(one, other) for one, other in zip(spoilt[1:], clean[1:]))


def test_nan_stays_in_its_ray_in_the_twin_too():
    data = {"density": torch.ones(3), "features": torch.ones(3, 2), "t": torch.ones(3), "dt": torch.ones(3), "rays": torch.tensor([[0, 1], [1, 2], [3, 0]]).int()}
    data["features"][0], data["t"][0] = math.nan, math.nan  # padding of shorter rays points to the first row
    for form in (raymarching.composite_rays_train, reference.composite_rays_train_forward):
        composited, _, depth, _ = form(**data, T_thresh=0.0)
        assert composited.isnan().any(1).tolist() == depth.isnan().tolist() == [True, False, False]


@pytest.mark.parametrize("T_thresh", [-0.1, 1.5, math.nan])
def test_a_threshold_that_is_no_transmittance_is_named(T_thresh):
    with pytest.raises(ValueError, match="T_thresh must be from 0 to 1"):
        raymarching.composite_rays_train(**medium(), T_thresh=T_thresh)


def test_any_layout_is_taken():
    data = medium(channels=3)
    strided = {**data, "features": data["features"].t().contiguous().t(), "density": torch.stack([data["density"]] * 2, 1)[:, 0]}
    ours, theirs = (raymarching.composite_rays_train(**x, T_thresh=1e-4) for x in (data, strided))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs))
    ours, theirs = (gradients(raymarching.composite_rays_train, x, 1e-4) for x in (data, strided))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs))


def test_gradient_stays_accurate_where_little_light_is_left():
    """float32 against float64 sample by sample, deep inside a ray: running sums subtracted from a total would lose these digits."""
    data = medium(rays=20, longest=300, dtype=torch.float64, density=0.6)
    exact = gradients(raymarching.composite_rays_train, data, 0.0)[0]
    single = {name: value.float() if value.is_floating_point() else value for name, value in data.items()}
    leaves = single["density"].requires_grad_(), single["features"]
    outputs = raymarching.composite_rays_train(*leaves, single["t"], single["dt"], single["rays"], 0.0)
    weight = [w.float() for w in cotangents([x.double() for x in outputs])]
    found = torch.autograd.grad(outputs, leaves[0], weight)[0].double()
    significant = exact.abs() > 1e-9
    assert ((found - exact).abs() / exact.abs())[significant].quantile(0.99) < 1e-3


def test_infinite_density_is_opaque_with_finite_gradients():
    data = medium(rays=20)
    for first, count in data["rays"].tolist():
        if count > 4:
            data["density"][first + 3] = math.inf
    outputs = raymarching.composite_rays_train(**data, T_thresh=0.0)
    assert all(x.isfinite().all() for x in outputs)
    assert torch.allclose(outputs[1][1], torch.tensor(1.0))
    ours, twin = gradients(raymarching.composite_rays_train, data, 0.0), gradients(reference.composite_rays_train_forward, data, 0.0)
    for one, other in zip(ours, twin):
        assert one.isfinite().all() and torch.allclose(one, other, atol=2e-5)
    data["dt"][data["rays"][1, 0]], data["density"][data["rays"][1, 0]] = 0, math.inf  # no length: empty all the same
    assert raymarching.composite_rays_train(**data, T_thresh=1e-4)[3][data["rays"][1, 0]] == 0


def test_samples_of_no_ray_have_no_weight_and_no_gradient():
    data = medium()
    owned = torch.zeros_like(data["density"], dtype=torch.bool)
    for first, count in data["rays"].tolist():
        owned[first : first + count] = True
    weights = raymarching.composite_rays_train(**data, T_thresh=0.0)[3]
    assert (weights[~owned] == 0).all() and all((g[~owned] == 0).all() for g in gradients(raymarching.composite_rays_train, data, 0.0))


def test_foreign_ray_rows_count_as_empty():
    data = medium(rays=5)
    data["rays"][1:4] = torch.tensor([[-1, 3], [10**6, 3], [0, 2**31 - 1]]).int()
    for function in (raymarching.composite_rays_train, reference.composite_rays_train_forward):
        composited, opacity, depth, _ = function(**data, T_thresh=1e-4)
        assert (composited[1:4] == 0).all() and (opacity[1:4] == 0).all() and (depth[1:4] == 0).all()


def test_empty_and_single():
    nothing = {
        "density": torch.zeros(0),
        "features": torch.zeros(0, 3),
        "t": torch.zeros(0),
        "dt": torch.zeros(0),
        "rays": torch.zeros(4, 2).int(),
    }
    assert [x.abs().sum().item() for x in raymarching.composite_rays_train(**nothing, T_thresh=1e-4)] == [0, 0, 0, 0]
    nothing["rays"] = nothing["rays"][:0]
    assert [tuple(x.shape) for x in raymarching.composite_rays_train(**nothing, T_thresh=1e-4)] == [(0, 3), (0,), (0,), (0,)]
    one = {
        "density": torch.tensor([2.0]),
        "features": torch.tensor([[3.0]]),
        "t": torch.tensor([5.0]),
        "dt": torch.tensor([0.5]),
        "rays": torch.tensor([[0, 1]]).int(),
    }
    weight = 1 - math.exp(-1)
    for found, expected in zip(raymarching.composite_rays_train(**one, T_thresh=1e-4), (3 * weight, weight, 5 * weight, weight)):
        assert math.isclose(found.item(), expected, rel_tol=1e-6)


def test_repeats_to_the_bit():
    data = medium(rays=2000)
    first, second = (gradients(raymarching.composite_rays_train, data, 1e-4) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second))


def test_raw_backward_equals_the_twins():
    data = medium()
    outputs = reference.composite_rays_train_forward(**data, T_thresh=1e-4)
    for chosen in (cotangents(outputs), [None] * 4, [None, *cotangents(outputs)[1:]]):
        ours = ops.kernels.composite_rays_train_backward(*chosen, *data.values(), 1e-4)
        twin = reference.composite_rays_train_backward(*chosen, *data.values(), 1e-4)
        assert all(torch.allclose(one, other, atol=2e-5) for one, other in zip(ours, twin))


def round_of_rendering(seed=0):
    generator = torch.Generator().manual_seed(seed)
    alive = torch.tensor([4, -1, 0, 7, 99, 2], dtype=torch.int32)
    dt = torch.rand(6, 5, generator=generator) * 0.3
    dt[0, 3:] = 0
    return {
        "alive": alive,
        "t_now": torch.rand(8, generator=generator),
        "t_next": torch.rand(6, generator=generator),
        "density": torch.rand(30, generator=generator) * torch.tensor([1.0, 1, 1, 80, 1, 1]).repeat_interleave(5),
        "features": torch.randn(30, 3, generator=generator),
        "t": torch.rand(30, generator=generator),
        "dt": dt.view(-1),
        "composited": torch.rand(8, 3, generator=generator),
        "opacity": torch.rand(8, generator=generator) * 0.5,
        "depth": torch.rand(8, generator=generator),
    }


def test_composite_rays_equals_the_twin_and_finishes_rays():
    before = round_of_rendering()
    ours, twin = round_of_rendering(), round_of_rendering()
    raymarching.composite_rays(**ours, T_thresh=1e-3)
    reference.composite_rays(**twin, T_thresh=1e-3)
    for name in ours:
        assert torch.allclose(ours[name], twin[name], atol=1e-6), name
    assert ours["alive"].tolist() == [-1, -1, 0, -1, 99, 2]  # no samples left, finished before, alive, opaque, no such ray, alive
    untouched = [1, 3, 5, 6]
    assert torch.equal(ours["opacity"][untouched], before["opacity"][untouched]) and torch.equal(
        ours["t_now"][untouched], before["t_now"][untouched]
    )
    assert torch.equal(ours["t_now"][[4, 0, 7, 2]], before["t_next"][[0, 2, 3, 5]])


def test_half_is_rendered_in_float32():
    half, widened = round_of_rendering(), round_of_rendering()
    for name in ("density", "features"):
        half[name] = half[name].half()
        widened[name] = half[name].float()
    for data in (half, widened):
        raymarching.composite_rays(**data, T_thresh=1e-3)
    assert all(torch.equal(half[name], widened[name]) for name in ("composited", "opacity", "depth", "alive", "t_now"))


@compiled
def test_opcheck():
    data = medium(rays=5, longest=6)
    raw, arguments = torch.ops.raymarching, tuple(data.values())
    outputs = raw.composite_rays_train_forward(*arguments, 1e-4)
    torch.library.opcheck(raw.composite_rays_train_forward, (*arguments, 1e-4))
    torch.library.opcheck(raw.composite_rays_train_backward, (*cotangents(outputs), *arguments, 1e-4))
    torch.library.opcheck(raw.composite_rays_train_backward, (None, None, None, None, *arguments, 1e-4))
    torch.library.opcheck(raw.composite_rays, (*round_of_rendering().values(), 1e-3))


@pytest.mark.parametrize(
    "change, error, word",
    [
        ({"density": torch.zeros(4).int()}, TypeError, "density must be torch.float32"),
        ({"features": torch.zeros(4, 17)}, ValueError, "features"),
        ({"features": torch.zeros(4, 0)}, ValueError, "features"),
        ({"features": torch.zeros(5, 3)}, ValueError, "features"),
        ({"t": torch.zeros(4).double()}, TypeError, "t must be"),
        ({"rays": torch.zeros(2, 2)}, TypeError, "rays"),
        ({"dt": torch.zeros(4, device="meta")}, ValueError, "dt is on meta"),
        ({"density": [1.0]}, TypeError, "density must be a tensor"),
    ],
)
def test_bad_arguments_are_named(change, error, word):
    good = {
        "density": torch.zeros(4),
        "features": torch.zeros(4, 3),
        "t": torch.zeros(4),
        "dt": torch.zeros(4),
        "rays": torch.zeros(2, 2).int(),
    }
    with pytest.raises(error, match=word):
        raymarching.composite_rays_train(**{**good, **change}, T_thresh=1e-4)


@pytest.mark.parametrize(
    "change, error, word",
    [
        ({"t_next": torch.zeros(5)}, ValueError, "t_next"),
        ({"density": torch.zeros(31)}, ValueError, "features"),
        ({"composited": torch.zeros(3, 8).t()}, ValueError, "composited is changed in place"),
        ({"alive": torch.zeros(6)}, TypeError, "alive"),
    ],
)
def test_bad_rendering_arguments_are_named(change, error, word):
    with pytest.raises(error, match=word):
        raymarching.composite_rays(**{**round_of_rendering(), **change}, T_thresh=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [1, 3, 4, 16])
@pytest.mark.parametrize("T_thresh", [0.0, 1e-4, 0.3])
def test_cuda_equals_cpu(channels, T_thresh):
    data = medium(rays=700, channels=channels, longest=200)
    data["density"][data["rays"][5, 0] + 1] = math.inf
    on_cuda = {name: value.cuda() for name, value in data.items()}
    cpu, cuda = (raymarching.composite_rays_train(**x, T_thresh=T_thresh) for x in (data, on_cuda))
    assert all(torch.allclose(one, other.cpu(), atol=1e-5, rtol=1e-4) for one, other in zip(cpu, cuda))
    for chosen in ((0, 1, 2, 3), (0,), (3,)):
        cpu, cuda = (gradients(raymarching.composite_rays_train, x, T_thresh, chosen) for x in (data, on_cuda))
        assert all(torch.allclose(one, other.cpu(), atol=5e-5, rtol=1e-3) for one, other in zip(cpu, cuda))


@pytest.mark.gpu
def test_cuda_rendering_round_equals_cpu():
    cpu, cuda = round_of_rendering(), {name: value.cuda() for name, value in round_of_rendering().items()}
    for data in (cpu, cuda):
        raymarching.composite_rays(**data, T_thresh=1e-3)
    assert all(torch.allclose(cpu[name], cuda[name].cpu(), atol=1e-6) for name in cpu)


@pytest.mark.gpu
def test_cuda_refuses_double_and_takes_nothing():
    data = {name: value.cuda() for name, value in medium(dtype=torch.float64).items()}
    with pytest.raises(TypeError, match="density"):
        raymarching.composite_rays_train(**data, T_thresh=1e-4)
    data = {name: value.cuda() for name, value in medium().items()}
    data["rays"] = data["rays"][:0]
    assert raymarching.composite_rays_train(**data, T_thresh=1e-4)[0].shape == (0, 3)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")
def test_cuda_honours_a_second_device():
    data = medium()
    on_second = {name: value.to("cuda:1") for name, value in data.items()}
    assert torch.cuda.current_device() == 0
    cpu, cuda = (gradients(raymarching.composite_rays_train, x, 1e-4) for x in (data, on_second))
    assert all(other.device.index == 1 and torch.allclose(one, other.cpu(), atol=5e-5, rtol=1e-3) for one, other in zip(cpu, cuda))
