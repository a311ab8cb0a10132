"""The frequency encoding against its twin, against the formula written out and against its own stated properties."""

import math

import pytest
import torch

from conftest import no_host_waits
from freqencoder import (
    FreqEncoder,
    freq_encode,
    freq_encode_backward,
    freq_encode_forward,
    ops,
    reference,
)

SEED = 20240807
SHAPES = [(3, 6, True), (3, 4, False), (2, 10, True), (1, 1, False), (64, 24, True)]  # dimensions, degree, include_input


def random_positions(count, dimensions, dtype=torch.float32):
    """[count, dimensions] within a box of side 32, the largest bound of a scene."""
    return 32 * torch.rand(count, dimensions, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64).to(dtype) - 16


def random_grad(count, dimensions, degree, include_input, dtype=torch.float32):
    columns = dimensions * (2 * degree + include_input)
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(SEED + 1), dtype=torch.float64).to(dtype)


def assert_gradients_close(ours, truth, degree, unit=1e-6):
    """The gradient's terms grow with the octave, and its rounding errors with them."""
    torch.testing.assert_close(ours.double(), truth.double(), rtol=0, atol=4 * unit * 2**degree)


def test_compiled_form_is_tested():
    assert ops.kernels is not reference, "the kernels were not compiled, so these tests would compare the twin with itself"


@pytest.mark.parametrize(("dimensions", "degree", "include_input"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 701])
def test_forward_and_backward_match_twin(dimensions, degree, include_input, dtype, count):
    positions = random_positions(count, dimensions, dtype)
    output = freq_encode_forward(positions, degree, include_input, dtype)
    assert output.shape == (count, dimensions * (2 * degree + include_input)) and output.dtype == dtype
    unit = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(output, reference.freq_encode_forward(positions, degree, include_input, dtype), rtol=0, atol=unit)
    grad = random_grad(count, dimensions, degree, include_input, dtype)
    gradient = freq_encode_backward(grad, positions, degree, include_input)
    assert gradient.shape == positions.shape and gradient.dtype == dtype
    assert_gradients_close(gradient, reference.freq_encode_backward(grad, positions, degree, include_input), degree, unit)


def test_columns_are_in_the_stated_order():
    x, y = 0.3, -1.7
    waves = [function(2**octave * value) for octave in range(3) for function in (math.sin, math.cos) for value in (x, y)]
    positions = torch.tensor([[x, y]], dtype=torch.float64)
    torch.testing.assert_close(freq_encode(positions, 3)[0], torch.tensor([x, y, *waves], dtype=torch.float64))
    torch.testing.assert_close(freq_encode(positions, 3, include_input=False)[0], torch.tensor(waves, dtype=torch.float64))


def test_float32_stays_accurate_at_the_highest_octave():
    positions = random_positions(2000, 3)
    output = freq_encode(positions, 24)
    torch.testing.assert_close(output.double(), freq_encode(positions.double(), 24), rtol=0, atol=1e-7)


@pytest.mark.parametrize("include_input", [False, True])
def test_gradcheck_in_double(include_input):
    positions = random_positions(7, 3, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: freq_encode(p, 4, include_input), positions)


def test_autocast_gives_half_and_a_float32_gradient():
    positions = random_positions(100, 3).requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        output = FreqEncoder()(positions)
    assert output.dtype == torch.float16
    torch.testing.assert_close(output.float(), freq_encode(positions, 6), rtol=1e-3, atol=1e-3)
    output.float().square().sum().backward()
    assert positions.grad.dtype == torch.float32 and positions.grad.any()


def test_nan_and_infinity_stay_in_their_coordinate():
    positions = random_positions(4, 3)
    clean = freq_encode(positions, 3).view(4, 7, 3)
    positions[1, 2], positions[2, 0] = math.nan, math.inf
    positions.requires_grad_()
    output = freq_encode(positions, 3)
    output.square().sum().backward()
    bad = ~positions.detach().isfinite()
    waves = output.detach().view(4, 7, 3)[:, 1:]
    torch.testing.assert_close(waves.isnan(), bad[:, None].expand_as(waves))
    torch.testing.assert_close(waves[~bad[:, None].expand_as(waves)], clean[:, 1:][~bad[:, None].expand_as(waves)])
    torch.testing.assert_close(positions.grad.isnan(), bad)


def test_opcheck():
    positions = random_positions(40, 3)
    torch.library.opcheck(torch.ops.freqencoder.freq_encode_forward.default, (positions, 4, True, torch.float32))
    torch.library.opcheck(torch.ops.freqencoder.freq_encode_forward.default, (positions, 3, False, torch.float16))
    torch.library.opcheck(torch.ops.freqencoder.freq_encode_backward.default, (random_grad(40, 3, 4, True), positions, 4, True))


def test_module_and_non_contiguous_input():
    encoder = FreqEncoder()
    assert encoder.output_size == 39 and FreqEncoder(2, 4, include_input=False).output_size == 16
    positions = random_positions(50, 3)
    torch.testing.assert_close(encoder(positions.T.contiguous().T), encoder(positions))
    grad = random_grad(50, 3, 6, True)
    spread = grad.T.contiguous().T
    torch.testing.assert_close(freq_encode_backward(spread, positions, 6, True), freq_encode_backward(grad, positions, 6, True))


@pytest.mark.parametrize(
    ("positions", "degree", "word", "kind"),
    [
        (torch.rand(12), 4, "positions", ValueError),
        (torch.rand(4, 0), 4, "positions", ValueError),
        (torch.rand(4, 65), 4, "positions", ValueError),
        (torch.rand(4, 3).half(), 4, "positions", TypeError),
        (torch.ones(4, 3, dtype=torch.int64), 4, "positions", TypeError),
        ([[0.0, 0.0, 1.0]], 4, "positions must be a tensor", TypeError),
        (torch.rand(4, 3), 25, "degree", ValueError),
        (torch.rand(4, 3), 0, "degree", ValueError),
        (torch.rand(4, 3), 2.5, "degree", ValueError),
    ],
)
def test_bad_arguments_are_named(positions, degree, word, kind):
    with pytest.raises(kind, match=word):
        freq_encode(positions, degree)


def test_bad_raw_arguments_are_named():
    positions = torch.rand(4, 3)
    with pytest.raises(TypeError, match="dtype must be"):
        freq_encode_forward(positions, 4, True, torch.float64)
    with pytest.raises(ValueError, match="degree"):
        freq_encode_forward(positions, 25, True, torch.float32)
    for shape in ((4, 24), (3, 27)):
        with pytest.raises(ValueError, match="grad must be of shape"):
            freq_encode_backward(torch.rand(shape), positions, 4, True)
    with pytest.raises(TypeError, match="grad"):
        freq_encode_backward(torch.rand(4, 27).double(), positions, 4, True)


def test_bad_settings_of_the_module_are_named():
    with pytest.raises(ValueError, match="degree"):
        FreqEncoder(degree=0)
    with pytest.raises(ValueError, match="dimensions"):
        FreqEncoder(dimensions=65)
    with pytest.raises(ValueError, match="positions"):
        FreqEncoder(dimensions=2)(torch.rand(4, 3))


@pytest.mark.gpu
@pytest.mark.parametrize(("dimensions", "degree", "include_input"), [*SHAPES, (37, 5, True), (64, 1, True), (1, 24, True), (5, 24, False)])
@pytest.mark.parametrize("count", [0, 1, 10_001])
def test_cuda_matches_twin(dimensions, degree, include_input, count):
    positions = random_positions(count, dimensions)
    double = positions.double()
    truth = reference.freq_encode_forward(double, degree, include_input, torch.float64)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float16, 1e-3)):
        output = freq_encode_forward(positions.cuda(), degree, include_input, dtype)
        assert output.dtype == dtype
        torch.testing.assert_close(output.cpu().double(), truth, rtol=tolerance, atol=tolerance)
        grad = random_grad(count, dimensions, degree, include_input, dtype)
        gradient = freq_encode_backward(grad.cuda(), positions.cuda(), degree, include_input)
        assert gradient.dtype == torch.float32
        assert_gradients_close(gradient.cpu(), reference.freq_encode_backward(grad.double(), double, degree, include_input), degree)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cuda_reads_what_is_not_contiguous_or_not_aligned(dtype):
    positions = random_positions(10, 3).cuda()
    grad = random_grad(11, 3, 6, True, dtype).cuda().flatten()[1 : 1 + 10 * 39].view(10, 39)
    expected = freq_encode_backward(grad.clone(), positions, 6, True)
    torch.testing.assert_close(freq_encode_backward(grad, positions, 6, True), expected)
    torch.testing.assert_close(freq_encode_backward(grad.T.contiguous().T, positions.T.contiguous().T, 6, True), expected)


@pytest.mark.gpu
def test_cuda_gradient_through_autocast():
    positions = random_positions(100, 3).cuda().requires_grad_()
    with torch.autocast("cuda", dtype=torch.float16):
        output = FreqEncoder()(positions)
    assert output.dtype == torch.float16
    (gradient,) = torch.autograd.grad(output.float().sum(), positions)
    expected = reference.freq_encode_backward(torch.ones(100, 39).double(), positions.detach().cpu().double(), 6, True)
    assert_gradients_close(gradient.cpu(), expected, 6)


@pytest.mark.gpu
def test_second_stream_is_honoured_without_waiting():
    """The positions are written on the stream after a pause: a kernel on another stream would read them too early."""
    positions = random_positions(100_000, 3).cuda()
    grad = random_grad(100_000, 3, 6, True).cuda()
    late, stream = torch.zeros_like(positions), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), no_host_waits():
        torch.cuda._sleep(100_000_000)
        late.copy_(positions)
        output = freq_encode_forward(late, 6, True, torch.float32)
        gradient = freq_encode_backward(grad, late, 6, True)
    torch.cuda.synchronize()
    torch.testing.assert_close(output, freq_encode_forward(positions, 6, True, torch.float32), rtol=0, atol=0)
    torch.testing.assert_close(gradient, freq_encode_backward(grad, positions, 6, True), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_second_device_is_honoured():
    positions = random_positions(1000, 3).to("cuda:1").requires_grad_()
    output = freq_encode(positions, 6)
    (gradient,) = torch.autograd.grad(output.sum(), positions)
    assert output.device == gradient.device == torch.device("cuda:1") and torch.cuda.current_device() == 0
    torch.testing.assert_close(output.cpu(), freq_encode(positions.cpu(), 6), rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_mixed_devices_are_named():
    with pytest.raises(ValueError, match="grad is on"):
        freq_encode_backward(torch.rand(4, 27), torch.rand(4, 3).cuda(), 4, True)
    with pytest.raises(TypeError, match="positions must be float32"):
        freq_encode(torch.rand(4, 3).double().cuda(), 4)
