"""MeRF's fused network against the module that defines it, in float64, and against what PyTorch itself loses in half precision."""

import pytest
import torch

import fusedfield
from conftest import DEVICES
from fusedfield import reference
from gridencoder import GridEncoder
from nerf.fields import MeRFField
from nerf.fields.merf import LIMITS
from test_fusedfield import BOUND, SEED, SIZES, TABLE, assert_as_good, in_float64, made, samples_at


def merf_field(device):
    """A field whose features are as large as trained ones."""
    torch.manual_seed(SEED)
    field = MeRFField(BOUND, TABLE).to(device)
    for encoder in field.modules():
        if isinstance(encoder, GridEncoder):
            torch.nn.init.uniform_(encoder.table, -0.5, 0.5)
    return field


def weights_of(field):
    return [field.hidden.weight.detach(), field.output.weight.detach() * 4]  # such that the limits are felt


def grids_of(field, dtype=torch.float32):
    encoders = [field.grid, *field.planes]
    return [encoder.table.detach().to(dtype) for encoder in encoders], [encoder.offsets for encoder in encoders], [encoder.resolutions for encoder in encoders], BOUND


def encodings_of(rows, device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(SEED + rows)
    return [torch.randn(rows, 32, generator=generator).to(device, dtype) for _ in range(4)]


def test_twin_is_the_field():
    field = merf_field("cpu")
    positions, directions = made(300, "cpu")
    weights = [field.hidden.weight.detach(), field.output.weight.detach()]
    raw = fusedfield.merf_at(positions, *grids_of(field), weights, LIMITS)
    torch.testing.assert_close(raw, field(samples_at(positions, directions)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fusedfield.merf_density_at(positions, *grids_of(field), weights, LIMITS), field.density(positions), rtol=1e-5, atol=1e-5)


def test_limits_are_kept_and_felt():
    field = merf_field("cpu")
    raw = fusedfield.merf([100 * encoding for encoding in encodings_of(300, "cpu")], weights_of(field), LIMITS)
    assert 0.99 * LIMITS[0] < raw[:, 0].abs().max() <= LIMITS[0] and 0.99 * LIMITS[1] < raw[:, 1:].abs().max() <= LIMITS[1]


def test_backward_of_the_twin_is_that_of_autograd():
    weights = [weight.double().requires_grad_() for weight in weights_of(merf_field("cpu"))]
    encodings = [encoding.requires_grad_() for encoding in encodings_of(50, "cpu", torch.float64)]
    gradient = torch.randn(50, 8, dtype=torch.float64)
    inputs = [*encodings, *weights]
    ours = torch.autograd.grad(fusedfield.merf(encodings, weights, LIMITS), inputs, gradient)
    theirs = torch.autograd.grad(reference.merf(encodings, weights, *LIMITS), inputs, gradient)
    for of_ours, of_theirs in zip(ours, theirs, strict=True):
        torch.testing.assert_close(of_ours.double(), of_theirs, rtol=1e-4, atol=1e-5)  # the gradient at raw passes through float32


@pytest.mark.parametrize("device", DEVICES)
def test_rows_that_are_not_in_use(device):
    if device == "cuda" and not fusedfield.available(device):
        pytest.skip("a GPU below compute capability 8.0")
    weights, encodings = weights_of(merf_field(device)), encodings_of(200, device, torch.float16 if device == "cuda" else torch.float32)
    gradient = torch.randn(200, 8, device=device)
    full = fusedfield.merf(encodings, weights, LIMITS)
    for used in (0, 1, 77, 200, 500):
        count = torch.full((1,), used, dtype=torch.int32, device=device)
        raw = fusedfield.merf(encodings, weights, LIMITS, count)
        torch.testing.assert_close(raw[:used], full[:used])
        assert not raw[used:].any()
        of_encoding, of_weights = fusedfield.merf_backward(encodings, weights, LIMITS, count, gradient)
        shorter = fusedfield.merf_backward([encoding[:used] for encoding in encodings], weights, LIMITS, None, gradient[:used])
        torch.testing.assert_close(of_encoding[:used], shorter[0])
        assert not of_encoding[used:].any()
        torch.testing.assert_close(of_weights, shorter[1], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", SIZES)
def test_forward(gpu, rows):
    field = merf_field(gpu)
    positions, _ = made(rows, gpu)
    weights, grids = weights_of(field), grids_of(field, torch.float16)
    truth = in_float64(reference.merf_at, positions, *grids, weights, *LIMITS)
    plain = reference.merf_at(positions, *grids, weights, *LIMITS)
    for dtype in (torch.float16, torch.float32):
        typed = [table.to(dtype) for table in grids[0]], *grids[1:]
        assert_as_good(fusedfield.merf_at(positions, *typed, weights, LIMITS), plain, truth)
        assert_as_good(fusedfield.merf_density_at(positions, *typed, weights, LIMITS), plain[:, 0], truth[:, 0])
    encodings = encodings_of(rows, gpu, torch.float16)
    truth, plain = in_float64(reference.merf, encodings, weights, *LIMITS), reference.merf(encodings, weights, *LIMITS)
    assert_as_good(fusedfield.merf(encodings, weights, LIMITS), plain, truth)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("scale", [None, 64.0])
def test_gradients(gpu, rows, scale):
    weights, gradient = weights_of(merf_field(gpu)), torch.randn(rows, 8, device=gpu)
    # Sums of four such numbers are exact in half precision: else a unit just above zero in one form is just below it in the other.
    encodings = [(encoding.clamp(-2, 2) * 256).round() / 256 for encoding in encodings_of(rows, gpu, torch.float16)]
    given = None if scale is None else torch.tensor(scale, device=gpu)
    truth = in_float64(reference.merf_backward, encodings, weights, *LIMITS, None, gradient, given)
    plain = reference.merf_backward(encodings, weights, *LIMITS, None, gradient, given)
    for of_ours, of_plain, of_truth in zip(fusedfield.merf_backward(encodings, weights, LIMITS, None, gradient, given), plain, truth, strict=True):
        assert_as_good(of_ours, of_plain, of_truth)


@pytest.mark.gpu
def test_not_finite_numbers_spread_as_in_pytorch(gpu):
    weights, encodings = weights_of(merf_field(gpu)), encodings_of(64, gpu, torch.float16)
    encodings[0][5, 7], encodings[2][20, 0] = torch.nan, torch.inf
    gradient = torch.randn(64, 8, device=gpu)
    gradient[60, 2] = torch.nan
    ours, plain = fusedfield.merf(encodings, weights, LIMITS), reference.merf(encodings, weights, *LIMITS)
    assert torch.equal(ours.isnan(), plain.isnan()) and ours[5].isnan().all() and ours.isfinite().all(dim=1).sum() >= 64 - 2
    ours = fusedfield.merf_backward(encodings, weights, LIMITS, None, gradient)
    plain = reference.merf_backward(encodings, weights, *LIMITS, None, gradient, None)
    assert torch.equal(ours[0].isfinite().all(dim=1), plain[0].isfinite().all(dim=1)) and not ours[1].isfinite().all()


@pytest.mark.gpu
def test_recorded(gpu):
    field = merf_field(gpu)
    positions, _ = made(500, gpu)
    weights, grids = weights_of(field), grids_of(field, torch.float16)
    count = torch.full((1,), 500, dtype=torch.int32, device=gpu)
    expected = fusedfield.merf_at(positions, *grids, weights, LIMITS)
    encodings = encodings_of(500, gpu, torch.float16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        raw = fusedfield.merf_at(positions, *grids, weights, LIMITS, count)
        gradients = fusedfield.merf_backward(encodings, weights, LIMITS, count, raw.float())
    graph.replay()
    assert torch.equal(raw, expected)
    first = gradients[1].clone()
    count.fill_(100)
    graph.replay()
    assert torch.equal(raw[:100], expected[:100]) and not raw[100:].any() and not torch.allclose(gradients[1], first)


@pytest.mark.gpu
def test_operators_are_sound(gpu):
    field = merf_field(gpu)
    positions, weights, grids, encodings = made(40, gpu)[0], weights_of(field), grids_of(field, torch.float16), encodings_of(40, gpu, torch.float16)
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    operators = torch.ops.fusedfield
    torch.library.opcheck(operators.merf.default, (encodings, weights, *LIMITS, None), **checks)
    torch.library.opcheck(operators.merf_at.default, (positions, *grids, weights, *LIMITS, None), **checks)
    torch.library.opcheck(operators.merf_density_at.default, (positions, *grids, weights, *LIMITS, None), **checks)
    torch.library.opcheck(operators.merf_backward.default, (encodings, weights, *LIMITS, None, torch.randn(40, 8, device=gpu), None), **checks)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encodings": lambda e: e[:3]}, "encodings"),
        ({"encodings": lambda e: [e[0].float(), *e[1:]]}, "encoding"),
        ({"encodings": lambda e: [*e[:3], e[3][:-1]]}, "encodings"),
        ({"weights": lambda w: w[:1]}, "weights"),
        ({"weights": lambda w: [w[0], w[1][:4].contiguous()]}, r"weights\[1\]"),
        ({"limits": lambda _: (0.0, 7.0)}, "density_limit"),
        ({"count": lambda c: c.long()}, "count"),
    ],
)
def test_bad_arguments_are_named(gpu, change, named):
    given = {"encodings": encodings_of(40, gpu, torch.float16), "weights": weights_of(merf_field(gpu)), "limits": LIMITS, "count": torch.ones(1, dtype=torch.int32, device=gpu)}
    ((name, spoil),) = change.items()
    given[name] = spoil(given[name])
    with pytest.raises((TypeError, ValueError), match=named):
        fusedfield.merf(**given)
