"""The fused fields against the modules that define them, in float64, and against what PyTorch itself loses in half precision."""

from functools import partial

import pytest
import torch

import fusedfield
from conftest import DEVICES
from fusedfield import reference
from gridencoder import GridEncoder
from nerf.fields import MeRFField, NGPField, ProposalField
from nerf.samples import Samples

SEED, BOUND, TABLE = 20261122, 2.0, 12
SIZES = [0, 1, 15, 33, 128, 129, 4099]
EXTRA = 1.5  # the kernels may lose this much more than PyTorch does in half precision, and FLOOR
FLOOR = 2e-4


def made(rows, device, outside=True):
    """(positions, directions) of `rows` samples; some positions lie outside the cube or are NaN."""
    generator = torch.Generator().manual_seed(SEED + rows)
    positions = (torch.rand(rows, 3, generator=generator) * 2 - 1) * BOUND * (1.1 if outside else 0.99)
    if outside and rows > 4:
        positions[3] = torch.nan
    directions = torch.nn.functional.normalize(torch.randn(rows, 3, generator=generator), dim=1)
    return positions.to(device), directions.to(device)


def ngp_field(device):
    """A field whose grid features are as large as trained ones."""
    torch.manual_seed(SEED)
    field = NGPField(BOUND, TABLE).to(device)
    field.density_start = 1.5
    torch.nn.init.uniform_(field.grid.table, -0.5, 0.5)
    return field


def ngp_weights(field):
    return [layer.weight.detach() for network in (field.geometry, field.colour) for layer in network if hasattr(layer, "weight")]


def grid_arguments(field, dtype=torch.float32):
    return field.grid.table.detach().to(dtype), field.grid.offsets, field.grid.resolutions, BOUND


def samples_at(positions, directions):
    rows = len(positions)
    t = torch.zeros(rows, device=positions.device)
    return Samples(positions, directions, t, t, torch.zeros(rows, dtype=torch.int32, device=positions.device))


def relative(ours, truth):
    """|ours - truth| / |truth|; NaN in either counts as a failure by being NaN."""
    return ((ours.cpu().double() - truth).norm() / truth.norm().clamp(min=1e-30)).item()


def assert_as_good(ours, plain, truth):
    """Ours is about as near to the truth as PyTorch in half precision."""
    assert ours.shape == truth.shape
    if truth.numel():
        assert relative(ours, truth) <= EXTRA * relative(plain, truth) + FLOOR


def in_float64(function, *arguments):
    """What a function of the twin gives on the CPU in float64."""

    def moved(argument):
        if isinstance(argument, (list, tuple)):
            return [moved(part) for part in argument]
        if not isinstance(argument, torch.Tensor):
            return argument
        return argument.detach().cpu().double() if argument.is_floating_point() else argument.cpu()

    return function(*moved(arguments))


# ---- the twin is the field


def test_twin_is_the_field():
    field = ngp_field("cpu")
    positions, directions = made(300, "cpu")
    raw = reference.ngp_at(positions, directions, *grid_arguments(field), ngp_weights(field), start=field.density_start)
    torch.testing.assert_close(raw, field(samples_at(positions, directions)), rtol=1e-5, atol=1e-5)
    logit = reference.ngp_density_at(positions, *grid_arguments(field), ngp_weights(field), start=field.density_start)
    torch.testing.assert_close(logit, field.density(positions), rtol=1e-5, atol=1e-5)


def test_twin_is_the_proposal_field():
    torch.manual_seed(SEED)
    field = ProposalField(BOUND, 128, TABLE)
    torch.nn.init.uniform_(field.grid.table, -0.5, 0.5)
    positions, _ = made(300, "cpu")
    weights = [layer.weight.detach() for layer in field.geometry if hasattr(layer, "weight")]
    torch.testing.assert_close(reference.proposal_at(positions, *grid_arguments(field), weights), field.density(positions), rtol=1e-5, atol=1e-5)


def test_backward_of_the_twin_is_that_of_autograd():
    field = ngp_field("cpu").double()
    weights = [weight.requires_grad_() for weight in ngp_weights(field)]
    encoding = torch.rand(50, 32, dtype=torch.float64, requires_grad=True)
    directions = made(50, "cpu")[1].double().requires_grad_()
    gradient = torch.randn(50, 4, dtype=torch.float64)
    raw = fusedfield.ngp(encoding, directions, weights)
    ours = torch.autograd.grad(raw, [encoding, directions, *weights], gradient)
    theirs = torch.autograd.grad(reference.ngp(encoding, directions, weights), [encoding, directions, *weights], gradient)
    for of_ours, of_theirs in zip(ours, theirs, strict=True):
        torch.testing.assert_close(of_ours.double(), of_theirs, rtol=1e-4, atol=1e-5)  # the gradient at raw passes through float32


@pytest.mark.parametrize("device", DEVICES)
def test_rows_that_are_not_in_use(device):
    if device == "cuda" and not fusedfield.available(device):
        pytest.skip("a GPU below compute capability 8.0")
    field = ngp_field(device)
    _, directions = made(200, device, outside=False)
    encoding = torch.rand(200, 32, device=device).half() if device == "cuda" else torch.rand(200, 32)
    weights, gradient = ngp_weights(field), torch.randn(200, 4, device=device)
    full = fusedfield.ngp(encoding, directions, weights)
    for used in (0, 1, 77, 200, 500):
        count = torch.full((1,), used, dtype=torch.int32, device=device)
        raw = fusedfield.ngp(encoding, directions, weights, count)
        torch.testing.assert_close(raw[:used], full[:used])
        assert not raw[used:].any()
        of_encoding, of_weights, of_view = fusedfield.ngp_backward(encoding, directions, weights, count, gradient, None, True)
        shorter = fusedfield.ngp_backward(encoding[:used], directions[:used], weights, None, gradient[:used], None, True)
        torch.testing.assert_close(of_encoding[:used], shorter[0])
        torch.testing.assert_close(of_view[:used], shorter[2])
        assert not of_encoding[used:].any() and not of_view[used:].any()
        torch.testing.assert_close(of_weights, shorter[1], rtol=1e-3, atol=1e-3)


# ---- the kernels


@pytest.mark.gpu
@pytest.mark.parametrize("rows", SIZES)
def test_ngp_forward(gpu, rows):
    field = ngp_field(gpu)
    positions, directions = made(rows, gpu)
    weights, table = ngp_weights(field), grid_arguments(field, torch.float16)
    start = {"start": -1.75}
    truth = in_float64(partial(reference.ngp_at, **start), positions, directions, *table, weights)
    plain = reference.ngp_at(positions, directions, *table, weights, **start)
    assert_as_good(fusedfield.ngp_at(positions, directions, *table, weights, **start), plain, truth)
    assert_as_good(fusedfield.ngp_at(positions, directions, table[0].float(), *table[1:], weights, **start), plain, truth)
    assert_as_good(fusedfield.ngp_density_at(positions, *table, weights, **start), plain[:, 0], truth[:, 0])
    assert_as_good(fusedfield.ngp_density_at(positions, table[0].float(), *table[1:], weights, **start), plain[:, 0], truth[:, 0])
    encoding = reference._encode(positions, *table)
    assert_as_good(fusedfield.ngp(encoding, directions, weights, **start), plain, truth)
    torch.testing.assert_close(fusedfield.ngp(encoding, directions, weights, **start), fusedfield.ngp_at(positions, directions, *table, weights, **start), rtol=2e-3, atol=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("scale", [None, 64.0])
def test_ngp_gradients(gpu, rows, scale):
    field = ngp_field(gpu)
    _, directions = made(rows, gpu)
    weights, encoding = ngp_weights(field), torch.randn(rows, 32, device=gpu).half()
    gradient = torch.randn(rows, 4, device=gpu)
    given = None if scale is None else torch.tensor(scale, device=gpu)
    truth = in_float64(reference.ngp_backward, encoding, directions, weights, None, gradient, given, True)
    plain = reference.ngp_backward(encoding, directions, weights, None, gradient, given, True)
    ours = fusedfield.ngp_backward(encoding, directions, weights, None, gradient, given, True)
    for of_ours, of_plain, of_truth in zip(ours, plain, truth, strict=True):
        assert_as_good(of_ours, of_plain, of_truth)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("levels", [1, 5, 8])
def test_proposal(gpu, rows, levels):
    torch.manual_seed(SEED)
    field = ProposalField(BOUND, 128, TABLE).to(gpu)
    torch.nn.init.uniform_(field.grid.table, -0.5, 0.5)
    table = field.grid.table.detach().half(), field.grid.offsets[: levels + 1], field.grid.resolutions[:levels], BOUND
    levels = len(table[2])
    weights = [torch.randn(16, 2 * levels, device=gpu) / 3, torch.randn(1, 16, device=gpu) / 4]
    positions, _ = made(rows, gpu)
    truth = in_float64(reference.proposal_at, positions, *table, weights)
    plain = reference.proposal_at(positions, *table, weights)
    assert_as_good(fusedfield.proposal_at(positions, *table, weights), plain, truth)
    assert_as_good(fusedfield.proposal_at(positions, table[0].float(), *table[1:], weights), plain, truth)
    encoding = torch.randn(rows, 2 * levels, device=gpu).half()
    gradient, scale = torch.randn(rows, device=gpu), torch.tensor(8.0, device=gpu)
    truth = in_float64(reference.proposal_backward, encoding, weights, None, gradient, scale)
    plain = reference.proposal_backward(encoding, weights, None, gradient, scale)
    for ours, of_plain, of_truth in zip(fusedfield.proposal_backward(encoding, weights, None, gradient, scale), plain, truth, strict=True):
        assert_as_good(ours, of_plain, of_truth)
    half_used = torch.full((1,), rows // 2, dtype=torch.int32, device=gpu)
    shorter = fusedfield.proposal_backward(encoding, weights, half_used, gradient, scale)
    assert not shorter[0][rows // 2 :].any()
    torch.testing.assert_close(shorter[1], fusedfield.proposal_backward(encoding[: rows // 2], weights, None, gradient[: rows // 2], scale)[1], rtol=1e-3, atol=1e-2)


@pytest.mark.gpu
def test_not_finite_numbers_spread_as_in_pytorch(gpu):
    field = ngp_field(gpu)
    weights, (_, directions) = ngp_weights(field), made(64, gpu)
    encoding = torch.randn(64, 32, device=gpu).half()
    encoding[5, 7], encoding[20, 0], encoding[40, 31] = torch.nan, torch.inf, -torch.inf
    directions[50, 1] = torch.nan
    gradient = torch.randn(64, 4, device=gpu)
    gradient[60, 2] = torch.nan
    ours, plain = fusedfield.ngp(encoding, directions, weights), reference.ngp(encoding, directions, weights)
    assert torch.equal(ours.isfinite(), plain.isfinite())
    assert ours.isfinite().all(dim=1).sum() == 64 - 4  # what is not finite stays in its own row
    ours = fusedfield.ngp_backward(encoding, directions, weights, None, gradient)
    plain = reference.ngp_backward(encoding, directions, weights, None, gradient, None, False)
    assert torch.equal(ours[0].isfinite().all(dim=1), plain[0].isfinite().all(dim=1))
    assert not ours[1].isfinite().all()


@pytest.mark.gpu
def test_backward_of_autograd(gpu):
    field = ngp_field(gpu)
    _, directions = made(300, gpu)
    weights = [weight.requires_grad_() for weight in ngp_weights(field)]
    encoding = torch.randn(300, 32, device=gpu).half().requires_grad_()
    directions.requires_grad_()
    gradient = torch.randn(300, 4, device=gpu).half()
    inputs = [encoding, directions, *weights]
    ours = torch.autograd.grad(fusedfield.ngp(encoding, directions, weights), inputs, gradient)
    plain = torch.autograd.grad(reference.ngp(encoding, directions, weights), inputs, gradient)
    leaves = [tensor.detach().cpu().double().requires_grad_() for tensor in inputs]
    truth = torch.autograd.grad(reference.ngp(leaves[0], leaves[1], leaves[2:]), leaves, gradient.cpu().double())
    for of_ours, of_plain, of_truth in zip(ours, plain, truth, strict=True):
        assert_as_good(of_ours, of_plain, of_truth)


@pytest.mark.gpu
def test_recorded_and_on_another_stream(gpu):
    field = ngp_field(gpu)
    positions, directions = made(500, gpu)
    weights, table = ngp_weights(field), grid_arguments(field, torch.float16)
    count = torch.full((1,), 500, dtype=torch.int32, device=gpu)
    expected = fusedfield.ngp_at(positions, directions, *table, weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        raw = fusedfield.ngp_at(positions, directions, *table, weights, count)
        gradients = fusedfield.ngp_backward(reference._encode(positions, *table), directions, weights, count, raw.float())
    graph.replay()
    assert torch.equal(raw, expected)
    first = gradients[1].clone()
    count.fill_(100)
    graph.replay()
    assert torch.equal(raw[:100], expected[:100]) and not raw[100:].any()
    assert not torch.allclose(gradients[1], first)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_second_device_is_honoured():
    results = []
    for device in ("cuda:0", "cuda:1"):
        field, (positions, directions) = ngp_field(device), made(500, device)
        weights, table = ngp_weights(field), grid_arguments(field, torch.float16)
        raw = fusedfield.ngp_at(positions, directions, *table, weights)
        gradients = fusedfield.ngp_backward(reference._encode(positions, *table), directions, weights, None, raw.float())
        assert all(result.device == torch.device(device) for result in (raw, *gradients)) and torch.cuda.current_device() == 0
        results.append((raw.cpu(), gradients[0].cpu()))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
def test_operators_are_sound(gpu):
    field = ngp_field(gpu)
    positions, directions = made(40, gpu)
    weights, table = ngp_weights(field), grid_arguments(field, torch.float16)
    encoding, gradient = torch.randn(40, 32, device=gpu).half(), torch.randn(40, 4, device=gpu)
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    torch.library.opcheck(torch.ops.fusedfield.ngp.default, (encoding, directions, weights, None, 0.5), **checks)
    torch.library.opcheck(torch.ops.fusedfield.ngp_at.default, (positions, directions, *table, weights, None, 0.5), **checks)
    torch.library.opcheck(torch.ops.fusedfield.ngp_density_at.default, (positions, *table, weights, None, 0.5), **checks)
    thin = [torch.randn(16, 10, device=gpu), torch.randn(1, 16, device=gpu)]
    torch.library.opcheck(torch.ops.fusedfield.proposal.default, (encoding[:, :10].contiguous(), thin, None), **checks)
    assert fusedfield.ngp_backward(encoding, directions, weights, None, gradient)[2].shape == (0, 16)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoding": lambda e: e.float()}, "encoding"),
        ({"encoding": lambda e: e[:, :30]}, "encoding"),
        ({"directions": lambda d: d[:-1]}, "directions"),
        ({"directions": lambda d: d.cpu()}, "directions"),
        ({"weights": lambda w: w[:-1]}, "weights"),
        ({"weights": lambda w: [w[0].t().contiguous(), *w[1:]]}, r"weights\[0\]"),
        ({"weights": lambda w: [w[0].half(), *w[1:]]}, r"weights\[0\]"),
        ({"count": lambda c: c.long()}, "count"),
    ],
)
def test_bad_arguments_are_named(gpu, change, named):
    field = ngp_field(gpu)
    given = {
        "encoding": torch.randn(40, 32, device=gpu).half(), "directions": made(40, gpu)[1],
        "weights": ngp_weights(field), "count": torch.ones(1, dtype=torch.int32, device=gpu),
    }  # fmt: skip
    ((name, spoil),) = change.items()
    given[name] = spoil(given[name])
    with pytest.raises((TypeError, ValueError), match=named):
        fusedfield.ngp(given["encoding"], given["directions"], given["weights"], given["count"])


# ---- in fields and in training


def half_field(kind, device):
    torch.manual_seed(SEED)
    made = {"ngp": NGPField, "merf": MeRFField, "proposal": lambda bound, table, half: ProposalField(bound, 128, table, half)}
    field = made[kind](BOUND, TABLE, half=True).to(device)
    field.density_start = 1.5
    for encoder in field.modules():
        if isinstance(encoder, GridEncoder):
            torch.nn.init.uniform_(encoder.table, -0.5, 0.5)
    return field


def gradients(field, run):
    field.zero_grad(set_to_none=True)
    run()
    return [parameter.grad.clone() for parameter in field.parameters() if parameter.grad is not None]  # none: MeRF's shader


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["ngp", "merf", "proposal"])
@pytest.mark.parametrize("training", [True, False])
def test_a_fused_field_is_the_field(gpu, kind, training):
    field = half_field(kind, gpu).train(training)
    samples = samples_at(*made(1000, gpu))
    upstream = torch.randn(1000, field.channels, device=gpu)
    upstream[700:] = 0
    count = torch.full((1,), 700, dtype=torch.int32, device=gpu)
    results = {}
    for fused in (False, True):
        field.fused = fused
        assert field.runs_fused(gpu) is fused
        with torch.no_grad():
            looked, density = field(samples), field.density(samples.positions)
        raw = field(samples)
        of_graph = gradients(field, lambda: field(samples).backward(upstream.half()))
        of_learning = gradients(field, lambda: field.learn(samples, upstream, count))
        results[fused] = [looked, density, raw.detach(), *of_graph, *of_learning]
    # MeRF sums four encodings, here in float32 and there in float16: a unit just above zero in one is just below it in the other.
    tolerance = 2e-2 if kind == "merf" else 5e-3
    for fused, plain in zip(results[True], results[False], strict=True):
        assert fused.dtype == plain.dtype and relative(fused, plain.cpu().double()) < tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["ngp", "merf"])
def test_gradients_reach_positions_and_directions(gpu, kind):
    field = half_field(kind, gpu)
    given = {}
    for fused in (False, True):
        field.fused = fused
        positions, directions = (tensor.requires_grad_() for tensor in made(500, gpu, outside=False))
        field.learn(samples_at(positions, directions), torch.ones(500, field.channels, device=gpu))
        given[fused] = [positions.grad, *([] if directions.grad is None else [directions.grad])]
    for fused, plain in zip(given[True], given[False], strict=True):
        assert relative(fused, plain.cpu().double()) < 2e-2


@pytest.mark.gpu
@pytest.mark.parametrize(("preset", "backbone"), [("-O", "ngp"), ("-O2", "ngp"), ("-O2", "merf")])
@pytest.mark.parametrize("mining", [[], ["--hsm"]])
def test_training_is_the_same(gpu, make_trainer, tmp_path, preset, backbone, mining):
    from conftest import advance

    told = {}
    for field in ("fused", "torch"):
        flags = ["--field", field, "--backbone", backbone, *mining, *([] if preset == "-O" else ["--num_points", "65536"])]
        trainer = make_trainer(*flags, device="cuda", preset=preset, folder=tmp_path / field)
        told[field] = [advance(trainer, 1).loss, *(advance(trainer, 50).squared_error for _ in range(4))]
    assert told["fused"][0] == pytest.approx(told["torch"][0], rel=1e-2)
    assert sum(told["fused"]) == pytest.approx(sum(told["torch"]), rel=0.15)  # 200 steps amplify a rounding difference
