"""The hash grid against its plain PyTorch twin, on the CPU and, marked `gpu`, on CUDA against the CPU form."""

import math

import pytest
import torch

import gridencoder
from gridencoder import (
    GridEncoder,
    grid_encode,
    grid_encode_backward,
    grid_encode_forward,
    ops,
    reference,
)

SEED = 20240806


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(SEED)


def small_grid(dtype=torch.float32, levels=6, log2_table_size=10):
    """A grid whose coarse levels are dense and whose fine ones are hashed, with a table of order one: [E, 2], [L + 1], [L]."""
    encoder = GridEncoder(levels=levels, base_resolution=4, finest_resolution=40, log2_table_size=log2_table_size)
    table = torch.randn(encoder.table.shape, dtype=dtype)
    return table, encoder.offsets, encoder.resolutions


def awkward_positions(count, dtype=torch.float32):
    """[count, 3]: mostly inside the unit cube, with corners, faces, outside points and NaN among the first rows."""
    positions = torch.rand(count, 3, dtype=dtype)
    special = torch.tensor(
        [
            [0, 0, 0],
            [1, 1, 1],
            [0, 1, 0.5],
            [1, 0.999, 1e-7],
            [-1e-6, 0.5, 0.5],
            [0.5, 1.0001, 0.5],
            [math.nan, 0.5, 0.5],
            [0.5, math.inf, 0.5],
        ],
        dtype=dtype,
    )
    positions[: len(special)] = special[:count]
    return positions


def test_compiled_form_is_tested():
    assert ops.kernels is not reference, "the kernels were not compiled, so these tests would compare the twin with itself"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 17, 3000])
def test_forward_and_backward_match_twin(dtype, count):
    table, offsets, resolutions = small_grid(dtype)
    positions = awkward_positions(count, dtype)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    output = grid_encode_forward(positions, table, offsets, resolutions)
    assert output.shape == (count, 12) and output.dtype == dtype
    torch.testing.assert_close(output, reference.grid_encode_forward(positions, table, offsets, resolutions), **tolerance)
    grad = torch.randn_like(output)
    gradient = grid_encode_backward(grad, positions, offsets, resolutions, *table.shape)
    expected = reference.grid_encode_backward(grad, positions, offsets, resolutions, *table.shape)
    assert gradient.shape == table.shape and gradient.dtype == dtype
    torch.testing.assert_close(gradient, expected, **tolerance)


def test_half_table_is_computed_in_float32():
    table, offsets, resolutions = small_grid()
    positions = awkward_positions(500)
    half = grid_encode_forward(positions, table.half(), offsets, resolutions)
    assert half.dtype == torch.float16
    exact = reference.grid_encode_forward(positions, table.half().float(), offsets, resolutions)
    torch.testing.assert_close(half.float(), exact, rtol=1e-3, atol=1e-3)
    grad = torch.randn(500, 12).half()
    gradient = grid_encode_backward(grad, positions, offsets, resolutions, *table.shape)
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(
        gradient, reference.grid_encode_backward(grad.float(), positions, offsets, resolutions, *table.shape), rtol=1e-3, atol=1e-3
    )


def test_value_at_a_cell_centre_is_the_entry():
    table, offsets, resolutions = small_grid()
    resolution, first = int(resolutions[0]), int(offsets[0])
    cells = torch.cartesian_prod(*[torch.arange(resolution)] * 3)
    output = grid_encode_forward((cells + 0.5) / resolution, table, offsets, resolutions)
    x, y, z = cells.unbind(1)
    torch.testing.assert_close(output[:, :2], table[first + x + resolution * (y + resolution * z)], rtol=1e-5, atol=1e-5)


def test_constant_table_gives_the_constant_everywhere_inside():
    table, offsets, resolutions = small_grid()
    output = grid_encode_forward(torch.rand(1000, 3), torch.full_like(table, 3.0), offsets, resolutions)
    torch.testing.assert_close(output, torch.full_like(output, 3.0))


def test_outside_and_nan_positions_give_zeros_and_no_gradient():
    table, offsets, resolutions = small_grid()
    outside = awkward_positions(8)[4:]
    assert torch.equal(grid_encode_forward(outside, table, offsets, resolutions), torch.zeros(4, 12))
    assert not grid_encode_backward(torch.ones(4, 12), outside, offsets, resolutions, *table.shape).any()


def test_nothing_outside_the_cube_reaches_the_table_or_comes_from_it():
    table, offsets, resolutions = small_grid()
    positions = awkward_positions(40)
    outside = ~((positions >= 0) & (positions <= 1)).all(1)
    grad = torch.where(outside[:, None], math.nan, torch.randn(40, 12))
    for form in (ops.kernels, reference):
        assert form.grid_encode_backward(grad, positions, offsets, resolutions, *table.shape, "hash", "linear", False).isfinite().all()
        features = form.grid_encode_forward(positions, torch.full_like(table, math.inf), offsets, resolutions, "hash", "linear", False)
        assert (features[outside] == 0).all() and not features[~outside].isfinite().any()


def test_gradcheck_in_double():
    table, offsets, resolutions = small_grid(torch.float64, levels=3, log2_table_size=6)
    positions = awkward_positions(20, torch.float64)
    assert torch.autograd.gradcheck(lambda t: grid_encode(positions, t, offsets, resolutions), table.requires_grad_())


def test_repetition_is_bit_for_bit():
    table, offsets, resolutions = small_grid()
    positions, grad = torch.rand(5000, 3), torch.randn(5000, 12)
    results = [grid_encode_backward(grad, positions, offsets, resolutions, *table.shape) for _ in range(3)]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_autocast_reads_half_and_keeps_a_float32_gradient():
    encoder = GridEncoder(levels=4, finest_resolution=64, log2_table_size=12)
    with torch.autocast("cpu", dtype=torch.float16):
        output = encoder(torch.rand(100, 3))
    assert output.dtype == torch.float16
    output.float().square().sum().mul(1e6).backward()
    assert encoder.table.grad.dtype == torch.float32 and encoder.table.grad.any()
    assert encoder(torch.rand(1, 3)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_total_variation_and_weight_decay_match_autograd_of_their_definition(dtype):
    table, offsets, resolutions = small_grid(dtype)
    positions, weight = awkward_positions(400, dtype), torch.tensor([0.7])
    for name, arguments in (
        ("add_total_variation_gradient", (offsets, resolutions, positions, weight)),
        ("add_weight_decay_gradient", (offsets, weight)),
    ):
        start = torch.randn_like(table)
        ours, expected = start.clone(), start.clone()
        getattr(gridencoder, name)(table, ours, *arguments)
        getattr(reference, name)(table, expected, *arguments)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        assert (ours - start).abs().max() > 1e-5


def test_total_variation_by_hand():
    """One dense level of 2^3 cells, one sample in the first cell: three neighbours, none beyond the border for the last cell."""
    offsets, resolutions = torch.tensor([0, 8], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    table = torch.zeros(8, 2)
    table[0] = torch.tensor([1.0, -2.0])
    gradient = torch.zeros(8, 2)
    gridencoder.add_total_variation_gradient(table, gradient, offsets, resolutions, torch.tensor([[0.1, 0.1, 0.1]]), torch.tensor([0.5]))
    expected = torch.zeros(8, 2)
    expected[0] = 3 * table[0]
    expected[[1, 2, 4]] = -table[0]
    torch.testing.assert_close(gradient, expected)
    corner = torch.zeros(8, 2)
    gridencoder.add_total_variation_gradient(table, corner, offsets, resolutions, torch.full((1, 3), 0.9), torch.tensor([0.5]))
    assert not corner.any()


def test_gradient_goes_into_a_buffer_that_is_there():
    encoder = GridEncoder(levels=4, finest_resolution=64, log2_table_size=10)
    positions, slope = torch.rand(200, 3), torch.randn(200, 8)
    encoder(positions).backward(slope)
    expected, encoder.table.grad = encoder.table.grad, None
    encoder.gradient = torch.ones_like(encoder.table)
    encoder(positions).backward(slope)
    assert encoder.table.grad is None
    torch.testing.assert_close(encoder.gradient, expected + 1)


def test_half_copy_is_read_in_training_under_autocast_only():
    encoder = GridEncoder(levels=4, finest_resolution=64, log2_table_size=10)
    positions = torch.rand(200, 3)
    encoder.half_copy = torch.full_like(encoder.table, 2.0, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(encoder(positions), torch.full((200, 8), 2.0, dtype=torch.float16))
        assert encoder.eval()(positions).abs().max() < 1e-3
    assert encoder.train()(positions).abs().max() < 1e-3


def test_opcheck():
    table, offsets, resolutions = small_grid()
    positions, weight = torch.rand(50, 3), torch.ones(1)
    operators = torch.ops.gridencoder
    torch.library.opcheck(operators.grid_encode_forward.default, (positions, table, offsets, resolutions))
    torch.library.opcheck(operators.grid_encode_forward.default, (positions, table.half(), offsets, resolutions))
    torch.library.opcheck(operators.grid_encode_backward.default, (torch.rand(50, 12), positions, offsets, resolutions, *table.shape))
    gradient = torch.zeros_like(table)
    torch.library.opcheck(operators.add_grid_encode_gradient.default, (gradient, torch.rand(50, 12), positions, offsets, resolutions))
    torch.library.opcheck(operators.add_total_variation_gradient.default, (table, gradient, offsets, resolutions, positions, weight))
    torch.library.opcheck(operators.add_weight_decay_gradient.default, (table, gradient, offsets, weight))


def test_layout_is_that_of_instant_ngp():
    for bound, entries, dense in ((1, 6098120, 5), (2, 6299960, 5), (8, 6644200, 4), (16, 6811592, 4)):
        offsets, resolutions = gridencoder.level_layout(3, 16, 16, 2048 * bound, 19)
        assert offsets[-1] == entries and resolutions[0] == 16 and resolutions[-1] == 2048 * bound
        assert sum(resolution**3 <= 2**19 for resolution in resolutions) == dense
        assert all(offset % 8 == 0 for offset in offsets)


def test_module():
    encoder = GridEncoder(levels=1)
    assert encoder.output_size == 2 and encoder(torch.rand(5, 3)).shape == (5, 2)
    assert list(encoder.state_dict()) == ["table"] and encoder.table.abs().max() <= 1e-4
    first = encoder.table.detach().clone()
    for _ in range(2):
        encoder.reset_parameters(torch.Generator().manual_seed(1))
    again = encoder.table.detach().clone()
    encoder.reset_parameters(torch.Generator().manual_seed(1))
    assert torch.equal(encoder.table, again) and not torch.equal(first, again)


def test_non_contiguous_arguments_are_honoured():
    table, offsets, resolutions = small_grid()
    positions = torch.rand(3, 100).T
    columns = torch.randn(2, table.shape[0]).T
    torch.testing.assert_close(
        grid_encode_forward(positions, columns, offsets, resolutions),
        grid_encode_forward(positions.contiguous(), columns.contiguous(), offsets, resolutions),
    )


def forward_case(**change):
    table, offsets, resolutions = small_grid()
    arguments = {"positions": torch.rand(9, 3), "table": table, "offsets": offsets, "resolutions": resolutions}
    return arguments | change


@pytest.mark.parametrize(
    ("change", "word", "kind"),
    [
        ({"positions": torch.rand(9, 3).double()}, "positions", TypeError),
        ({"positions": torch.rand(27)}, "positions", ValueError),
        ({"positions": [[0.0, 0.0, 0.0]]}, "positions must be a tensor", TypeError),
        ({"positions": torch.rand(9, 4)}, "4 dimensions", ValueError),
        ({"table": torch.zeros(10000, 3)}, "3 features", ValueError),
        ({"table": torch.zeros(10000, 0)}, "0 features", ValueError),
        ({"table": torch.zeros(10000, 2, dtype=torch.int32)}, "table", TypeError),
        ({"table": torch.zeros(100, 2)}, "level", ValueError),
        ({"offsets": torch.zeros(7)}, "offsets", TypeError),
        ({"offsets": torch.zeros(5, dtype=torch.int32)}, "offsets", ValueError),
        ({"offsets": torch.zeros(7, dtype=torch.int32)}, "level", ValueError),
        ({"resolutions": torch.zeros(6, dtype=torch.int64)}, "resolutions", TypeError),
        ({"resolutions": torch.tensor([4, 6, 0, 15, 24, 40], dtype=torch.int32)}, "resolutions: level 2", ValueError),
        ({"offsets": torch.tensor([0, 60, 400, 1424, 2448, 3472, 4496], dtype=torch.int32)}, "not a power of two", ValueError),
        ({"gridtype": "dense"}, "gridtype", ValueError),
        ({"interpolation": "cubic"}, "interpolation", ValueError),
    ],
)
def test_bad_arguments_are_named(change, word, kind):
    with pytest.raises(kind, match=word):
        grid_encode(**forward_case(**change))


def test_bad_gradients_are_named():
    table, offsets, resolutions = small_grid()
    positions, weight = torch.rand(9, 3), torch.ones(1)
    with pytest.raises(ValueError, match="grad must be of shape"):
        grid_encode_backward(torch.rand(9, 11), positions, offsets, resolutions, *table.shape)
    for wrong in (torch.zeros_like(table).T.contiguous().T, torch.zeros_like(table).double()):
        with pytest.raises((ValueError, TypeError), match="gradient must be"):
            gridencoder.add_grid_encode_gradient(wrong, torch.rand(9, 12), positions, offsets, resolutions)
    with pytest.raises(ValueError, match="gradient"):
        gridencoder.add_weight_decay_gradient(table, torch.zeros(3, 2), offsets, weight)
    with pytest.raises(TypeError, match="weight"):
        gridencoder.add_weight_decay_gradient(table, torch.zeros_like(table), offsets, weight.double())
    with pytest.raises(ValueError, match="weight"):
        gridencoder.add_total_variation_gradient(table, torch.zeros_like(table), offsets, resolutions, positions, torch.ones(2))


@pytest.mark.parametrize(
    "change",
    [
        {"levels": 0},
        {"features": 3},
        {"dimensions": 4},
        {"log2_table_size": 40},
        {"base_resolution": 64, "finest_resolution": 32},
        {"gridtype": "dense"},
        {"interpolation": "cubic"},
    ],
)
def test_bad_module_arguments_are_named(change):
    with pytest.raises(ValueError, match="|".join([*change, "resolutions"])):
        GridEncoder(**change)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [0, 1, 1000, 100_001])
def test_cuda_matches_cpu(count):
    table, offsets, resolutions = small_grid()
    positions, grad, weight = awkward_positions(count), torch.randn(count, 12), torch.tensor([0.3])
    grad[::2] = 0
    device = [x.cuda() for x in (positions, table, offsets, resolutions)]
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float16, 2e-3)):
        ours = grid_encode_forward(device[0], device[1].to(dtype), *device[2:])
        assert ours.dtype == dtype
        expected = grid_encode_forward(positions, table.to(dtype), offsets, resolutions)
        torch.testing.assert_close(ours.cpu(), expected, rtol=tolerance, atol=tolerance)
        gradient = grid_encode_backward(grad.to(dtype).cuda(), device[0], *device[2:], *table.shape)
        expected = grid_encode_backward(grad.to(dtype), positions, offsets, resolutions, *table.shape)
        torch.testing.assert_close(gradient.cpu(), expected, rtol=1e-3, atol=1e-3)
    for name, arguments in (
        ("add_total_variation_gradient", (offsets, resolutions, positions, weight)),
        ("add_weight_decay_gradient", (offsets, weight)),
    ):
        ours, expected = torch.zeros_like(table).cuda(), torch.zeros_like(table)
        getattr(gridencoder, name)(device[1], ours, *(argument.cuda() for argument in arguments))
        getattr(gridencoder, name)(table, expected, *arguments)
        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
def test_cuda_autocast_stream_and_graph():
    encoder = GridEncoder(levels=4, finest_resolution=64, log2_table_size=12).cuda()
    positions = torch.rand(1000, 3, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.autocast("cuda", dtype=torch.float16):
        output = encoder(positions)
        output.float().sum().backward()
    torch.cuda.current_stream().wait_stream(stream)
    assert output.dtype == torch.float16 and encoder.table.grad.dtype == torch.float32
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = encoder(positions)
    graph.replay()
    torch.testing.assert_close(captured.cpu(), encoder(positions).detach().cpu())


@pytest.mark.gpu
def test_mixed_devices_are_named():
    case = forward_case(table=small_grid()[0].cuda())
    with pytest.raises(ValueError, match="table is on cuda"):
        grid_encode(**case)


def test_half_table_follows_the_table():
    encoder = GridEncoder(levels=2, log2_table_size=8)
    assert torch.equal(encoder.half_table(), encoder.table.half())
    encoder.half_copy = torch.ones_like(encoder.table, dtype=torch.float16)
    assert encoder.half_table() is encoder.half_copy
    encoder.eval()
    kept = encoder.half_table()
    assert torch.equal(kept, encoder.table.half()) and encoder.half_table() is kept
    with torch.no_grad():
        encoder.table.add_(1)
    assert torch.equal(encoder.half_table(), encoder.table.half())
    mean = torch.zeros_like(encoder.table)
    encoder.table.data, mean.data = mean.data, encoder.table.data  # as a running mean is put in place
    assert not encoder.half_table().any()
    mean.fill_(2)
    encoder.table.data, mean.data = mean.data, encoder.table.data
    assert torch.equal(encoder.half_table(), encoder.table.half())
    kept = encoder.train().eval().half_table()
    assert kept is encoder.half_table() and torch.equal(kept, encoder.table.half())
