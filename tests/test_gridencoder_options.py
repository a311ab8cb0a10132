"""The hash grid's kinds: hashed and tiled, linear and smoothstep, centres and corners, 2-D and 3-D, 1 to 8 features; and the gradient
with respect to the positions. Against the plain PyTorch twin, on the CPU and, marked `gpu`, on CUDA."""

import itertools
import math

import pytest
import torch

import gridencoder
from gridencoder import GridEncoder, grid_encode, grid_encode_backward_positions, reference

OPTIONS = list(itertools.product(("hash", "tiled"), ("linear", "smoothstep"), (False, True)))
SHAPES = list(itertools.product((2, 3), (1, 2, 4, 8)))
every_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda chosen: "-".join(str(option) for option in chosen))
every_shape = pytest.mark.parametrize(("dimensions", "features"), SHAPES)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(20240807)


def case(dimensions, features, count=300, dtype=torch.float32, device="cpu", levels=5):
    """positions [count, D] with awkward rows first; table, offsets, resolutions of a grid of dense and full levels, one a single entry."""
    encoder = GridEncoder(dimensions, levels, features, base_resolution=1, finest_resolution=50, log2_table_size=8)
    positions = torch.rand(count, dimensions, dtype=dtype)
    edges = torch.tensor(list(itertools.product((0, 0.5, 1, -1e-3, math.nan, math.inf), repeat=dimensions)), dtype=dtype)
    positions[: len(edges) // 2] = edges[::2][:count]
    table = torch.randn(encoder.table.shape, dtype=dtype)
    return [x.to(device) for x in (positions, table, encoder.offsets, encoder.resolutions)]


def close(ours, expected, tolerance):
    torch.testing.assert_close(ours.cpu().double(), expected.cpu().double(), rtol=tolerance, atol=tolerance)


def compare_with_twin(dimensions, features, options, dtype, device, tolerance):
    """Features and both gradients of the compiled form against the twin's in float64."""
    positions, table, offsets, resolutions = case(dimensions, features, device=device)
    if dtype == torch.float64:
        positions = positions.double()
    # Where the position lies on an entry the slope jumps, and rounding decides which side is taken.
    p = positions.double()[:, None]
    x = p * (resolutions - 1)[:, None] if options[2] else p * resolutions[:, None] - 0.5
    smooth = ((x - x.round()).abs() > 1e-4).logical_or(p == 0).logical_or(p == 1).all(2).all(1)
    table = table.to(dtype)
    positions.requires_grad_()
    table.requires_grad_()
    output = grid_encode(positions, table, offsets, resolutions, *options)
    grad = torch.randn_like(output)
    of_positions, of_table = torch.autograd.grad(output, (positions, table), grad)
    assert output.dtype == of_table.dtype == dtype and of_positions.dtype == positions.dtype
    exact_positions, exact_table = positions.detach().double(), table.detach().double()
    arguments = (exact_table, offsets, resolutions, *options)
    close(output, reference.grid_encode_forward(exact_positions, *arguments), tolerance)
    expected = reference.grid_encode_backward(grad.double(), exact_positions, offsets, resolutions, *table.shape, *options)
    close(of_table, expected, 5 * tolerance)
    expected = reference.grid_encode_backward_positions(grad.double(), exact_positions, *arguments)
    scale = 1 + expected[smooth].abs().max()
    close(of_positions[smooth] / scale, expected[smooth] / scale, tolerance)
    outside = ~((positions >= 0) & (positions <= 1)).all(1)
    assert outside.any() and not of_positions[outside].any() and not output[outside].any()


@every_option
@every_shape
def test_features_and_gradients_match_twin(dimensions, features, options):
    compare_with_twin(dimensions, features, options, torch.float32, "cpu", 1e-4)
    compare_with_twin(dimensions, features, options, torch.float16, "cpu", 2e-3)
    compare_with_twin(dimensions, features, options, torch.float64, "cpu", 1e-11)


@pytest.mark.gpu
@every_option
@every_shape
def test_cuda_matches_twin(dimensions, features, options):
    compare_with_twin(dimensions, features, options, torch.float32, "cuda", 1e-4)
    compare_with_twin(dimensions, features, options, torch.float16, "cuda", 2e-3)


@every_option
@pytest.mark.parametrize(("dimensions", "features"), [(2, 1), (3, 2), (3, 4)])
def test_gradcheck_of_table_and_positions(dimensions, features, options):
    _, table, offsets, resolutions = case(dimensions, features, dtype=torch.float64, levels=3)
    positions = torch.rand(7, dimensions, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, t: grid_encode(p, t, offsets, resolutions, *options), (positions, table.requires_grad_()))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("gridtype", ["hash", "tiled"])
@pytest.mark.parametrize("align_corners", [False, True])
@every_shape
def test_regularisers_match_twin(dimensions, features, gridtype, align_corners, device):
    for dtype in (torch.float32, torch.float64) if device == "cpu" else (torch.float32,):
        positions, table, offsets, resolutions = case(dimensions, features, dtype=dtype, device=device)
        weight = torch.tensor([0.7], device=device)
        for name, arguments in (
            ("add_total_variation_gradient", (offsets, resolutions, positions, weight, gridtype, align_corners)),
            ("add_weight_decay_gradient", (offsets, weight)),
        ):
            ours, expected = torch.ones_like(table), torch.ones_like(table)
            getattr(gridencoder, name)(table, ours, *arguments)
            getattr(reference, name)(table, expected, *arguments)
            close(ours, expected, 1e-5)
            assert (ours - 1).abs().max() > 1e-5


def test_entries_lie_where_align_corners_says():
    offsets, resolutions = torch.tensor([0, 32], dtype=torch.int32), torch.tensor([5], dtype=torch.int32)
    table = torch.randn(32, 2)
    cells = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    x, y = cells.unbind(1)
    for interpolation in ("linear", "smoothstep"):
        corners = grid_encode(cells / 4, table, offsets, resolutions, interpolation=interpolation, align_corners=True)
        centres = grid_encode((cells + 0.5) / 5, table, offsets, resolutions, interpolation=interpolation)
        torch.testing.assert_close(corners, table[x + 5 * y], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(centres, table[x + 5 * y], rtol=1e-5, atol=1e-5)


def test_tiled_level_repeats():
    """8 entries along x, y and z but 64 in the table: the index x + 8 y + 64 z modulo 64 is the same for every z."""
    offsets, resolutions = torch.tensor([0, 64], dtype=torch.int32), torch.tensor([8], dtype=torch.int32)
    table, x = torch.randn(64, 2), torch.arange(8)
    for z in range(8):
        positions = torch.stack([x + 0.5, torch.full((8,), 2.5), torch.full((8,), z + 0.5)], 1) / 8
        torch.testing.assert_close(grid_encode(positions, table, offsets, resolutions, "tiled"), table[x + 16], rtol=1e-5, atol=1e-5)


def test_smoothstep_is_flat_at_entries_and_linear_slope_is_that_of_the_cell():
    offsets, resolutions = torch.tensor([0, 8], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    table = torch.zeros(8, 1)
    table[1] = 3  # the entry at x = 1, y = 0
    for x, interpolation, slope in ((0, "linear", 3), (0.3, "linear", 3), (1, "linear", 3), (1, "smoothstep", 0), (0.5, "smoothstep", 4.5)):
        positions = torch.tensor([[x, 0.0]], requires_grad=True)
        output = grid_encode(positions, table, offsets, resolutions, interpolation=interpolation, align_corners=True)
        (gradient,) = torch.autograd.grad(output.sum(), positions)
        torch.testing.assert_close(gradient[0, 0], torch.tensor(float(slope)))


@every_option
@pytest.mark.parametrize("count", [0, 1])
def test_empty_and_single(count, options):
    positions, table, offsets, resolutions = case(3, 4, count=40)
    positions = positions[-1:][:count].requires_grad_()
    output = grid_encode(positions, table.requires_grad_(), offsets, resolutions, *options)
    output.sum().backward()
    assert output.shape == (count, 20) and positions.grad.shape == (count, 3) and table.grad.any() == bool(count)


def test_non_contiguous_arguments_are_honoured():
    positions, table, offsets, resolutions = case(3, 4)
    grad = torch.randn(20, 300).T
    ours = grid_encode_backward_positions(grad, positions.T.contiguous().T, table.T.contiguous().T, offsets, resolutions)
    assert torch.equal(ours, grid_encode_backward_positions(grad.contiguous(), positions, table, offsets, resolutions))


def test_positions_gradient_names_bad_arguments():
    positions, table, offsets, resolutions = case(3, 4)
    with pytest.raises(TypeError, match="grad must be"):
        grid_encode_backward_positions(torch.zeros(300, 20).half(), positions, table, offsets, resolutions)
    with pytest.raises(ValueError, match="grad must be of shape"):
        grid_encode_backward_positions(torch.zeros(300, 19), positions, table, offsets, resolutions)
    with pytest.raises(ValueError, match="interpolation"):
        grid_encode_backward_positions(torch.zeros(300, 20), positions, table, offsets, resolutions, interpolation="nearest")


def test_table_changed_before_the_backward_pass_is_an_error():
    positions, table, offsets, resolutions = case(2, 2)
    output = grid_encode(positions.requires_grad_(), table, offsets, resolutions)
    table.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_module_passes_its_options_on():
    encoder = GridEncoder(2, 4, 4, 4, 64, 8, gridtype="tiled", interpolation="smoothstep", align_corners=True)
    encoder.reset_parameters(torch.Generator().manual_seed(1))
    positions = torch.rand(50, 2, requires_grad=True)
    output = encoder(positions)
    expected = reference.grid_encode_forward(positions, encoder.table, encoder.offsets, encoder.resolutions, "tiled", "smoothstep", True)
    torch.testing.assert_close(output, expected)
    with torch.autocast("cpu", dtype=torch.float16):
        half = encoder(positions)
    half.float().sum().mul(1e4).backward()
    assert half.dtype == torch.float16 and positions.grad.dtype == torch.float32 and positions.grad.any()
    assert "tiled, smoothstep, align_corners=True" in repr(encoder)


def test_opcheck():
    positions, table, offsets, resolutions = case(2, 4)
    operators, options = torch.ops.gridencoder, ("tiled", "smoothstep", True)
    for dtype in (torch.float32, torch.float16):
        grad, values = torch.randn(300, 20).to(dtype), table.to(dtype)
        torch.library.opcheck(operators.grid_encode_forward.default, (positions, values, offsets, resolutions, *options))
        torch.library.opcheck(operators.grid_encode_backward.default, (grad, positions, offsets, resolutions, *table.shape, *options))
        torch.library.opcheck(operators.grid_encode_backward_positions.default, (grad, positions, values, offsets, resolutions, *options))
    arguments = (table, torch.zeros_like(table), offsets, resolutions, positions, torch.ones(1), "tiled", True)
    torch.library.opcheck(operators.add_total_variation_gradient.default, arguments)


def on_device(device):
    """Features and all gradients of one case on `device`, brought to the CPU."""
    positions, table, offsets, resolutions = [x.to(device) for x in case(3, 2)]
    output = grid_encode(positions.requires_grad_(), table.requires_grad_(), offsets, resolutions, "tiled", "smoothstep")
    output.square().sum().backward()
    weight = torch.ones(1, device=device)
    gridencoder.add_total_variation_gradient(table, table.grad, offsets, resolutions, positions.detach(), weight, "tiled")
    gridencoder.add_weight_decay_gradient(table, table.grad, offsets, weight)
    return output, positions.grad, table.grad


@pytest.mark.gpu
def test_second_stream_and_second_device():
    torch.manual_seed(1)
    expected = on_device("cpu")
    torch.manual_seed(1)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        results = [on_device("cuda")]
    stream.synchronize()
    if torch.cuda.device_count() > 1:
        torch.manual_seed(1)
        results.append(on_device("cuda:1"))
    for result in results:
        for ours, exact in zip(result, expected, strict=True):
            scale = 1 + exact.abs().max()
            close(ours / scale.to(ours.device), exact / scale, 1e-4)
