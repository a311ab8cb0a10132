"""The spherical-harmonics encoding against its twin, against SciPy and against its own defining properties."""

import math

import numpy
import pytest
import torch
from scipy import special

from conftest import no_host_waits
from shencoder import (
    SHEncoder,
    ops,
    reference,
    sh_encode,
    sh_encode_backward,
    sh_encode_forward,
)

SEED = 20240806
DEGREES = range(1, 9)


def unit_vectors(count, dtype=torch.float32):
    """[count, 3]: random unit vectors, the poles and the axes among the first rows."""
    directions = torch.nn.functional.normalize(
        torch.randn(count, 3, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64), dim=1
    )
    axes = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    directions[: len(axes)] = axes[:count]
    return directions.to(dtype)


def test_compiled_form_is_tested():
    assert ops.kernels is not reference, "the kernels were not compiled, so these tests would compare the twin with itself"


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 3001])
def test_forward_and_backward_match_twin(degree, dtype, count):
    directions = unit_vectors(count, dtype) * 1.3  # not of unit length: the polynomials themselves agree
    unit = 1e-6 if dtype == torch.float32 else 1e-14  # values reach 30, gradients some hundreds
    output = sh_encode_forward(directions, degree, dtype)
    assert output.shape == (count, degree**2) and output.dtype == dtype
    torch.testing.assert_close(output, reference.sh_encode_forward(directions, degree, dtype), rtol=4 * unit, atol=20 * unit)
    grad = torch.randn_like(output)
    gradient = sh_encode_backward(grad, directions, degree)
    assert gradient.shape == (count, 3) and gradient.dtype == dtype
    torch.testing.assert_close(gradient, reference.sh_encode_backward(grad, directions, degree), rtol=0, atol=1000 * unit)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_values_match_scipy(dtype, tolerance):
    """SciPy's complex harmonics carry the Condon-Shortley phase; the real ones are sqrt(2) times their real and imaginary parts."""
    directions = unit_vectors(200, dtype)
    x, y, z = directions.double().numpy().T
    azimuth, polar = numpy.arctan2(y, x), numpy.arccos(numpy.clip(z, -1, 1))
    output = sh_encode(directions, 8).double().numpy()
    for order in range(8):
        for m in range(order + 1):
            value = special.sph_harm_y(order, m, polar, azimuth)
            scale = 1 if m == 0 else numpy.sqrt(2)
            numpy.testing.assert_allclose(output[:, order**2 + order + m], scale * value.real, atol=tolerance)
            if m > 0:
                numpy.testing.assert_allclose(output[:, order**2 + order - m], scale * value.imag, atol=tolerance)


@pytest.mark.parametrize("encode", [sh_encode_forward, reference.sh_encode_forward])
def test_polynomials_as_written_out_in_the_literature(encode):
    """The first sixteen, at vectors of any length: the sphere alone does not tell 3 z^2 - 1 from 2 z^2 - x^2 - y^2."""
    directions = 2 * torch.randn(300, 3, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    x, y, z = directions.T
    written_out = [
        0.28209479177387814 + 0 * x,
        -0.4886025119029199 * y,
        0.4886025119029199 * z,
        -0.4886025119029199 * x,
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.31539156525252005 * (3 * z * z - 1),
        -1.0925484305920792 * x * z,
        0.5462742152960396 * (x * x - y * y),
        -0.5900435899266435 * y * (3 * x * x - y * y),
        2.890611442640554 * x * y * z,
        -0.4570457994644658 * y * (5 * z * z - 1),
        0.3731763325901154 * z * (5 * z * z - 3),
        -0.4570457994644658 * x * (5 * z * z - 1),
        1.445305721320277 * z * (x * x - y * y),
        -0.5900435899266435 * x * (x * x - 3 * y * y),
    ]
    torch.testing.assert_close(encode(directions, 4, torch.float64), torch.stack(written_out, 1), rtol=1e-12, atol=1e-12)


def test_orthonormal_on_the_sphere():
    """Gauss-Legendre nodes in z and even steps in azimuth integrate polynomials of degree 14 exactly."""
    nodes, weights = numpy.polynomial.legendre.leggauss(8)
    azimuth = numpy.arange(16) * (2 * numpy.pi / 16)
    z, phi = numpy.meshgrid(nodes, azimuth, indexing="ij")
    radius = numpy.sqrt(1 - z**2)
    directions = torch.from_numpy(numpy.stack([radius * numpy.cos(phi), radius * numpy.sin(phi), z], -1).reshape(-1, 3))
    area = torch.from_numpy(numpy.repeat(weights, 16) * (2 * numpy.pi / 16))
    output = sh_encode(directions, 8)
    torch.testing.assert_close(output.T @ (area[:, None] * output), torch.eye(64, dtype=torch.float64), rtol=0, atol=1e-12)


def test_zero_vectors_of_padding_rows_are_finite():
    directions = torch.zeros(3, 3, requires_grad=True)
    output = sh_encode(directions, 8)
    output.sum().backward()
    assert output.isfinite().all() and directions.grad.isfinite().all()


@pytest.mark.parametrize("encode", [sh_encode_forward, reference.sh_encode_forward])
def test_nan_stays_in_its_row(encode):
    directions = unit_vectors(5)
    clean = encode(directions, 8, torch.float32)
    directions[2] = math.nan
    output = encode(directions, 8, torch.float32)
    assert output[2, 1:].isnan().all() and output[2, 0] == clean[2, 0]
    others = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(output[others], clean[others], rtol=0, atol=0)
    gradient = sh_encode_backward(torch.ones(5, 64), directions, 8)
    assert gradient[2].isnan().all() and gradient[others].isfinite().all()


@pytest.mark.parametrize("degree", DEGREES)
def test_gradcheck_in_double(degree):
    directions = unit_vectors(10, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: sh_encode(d, degree), directions)


def test_autocast_gives_half_and_a_float32_gradient():
    directions = unit_vectors(100).requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        output = SHEncoder(4)(directions)
    assert output.dtype == torch.float16
    torch.testing.assert_close(output.float(), sh_encode(directions, 4), rtol=1e-3, atol=1e-3)
    output.float().square().sum().backward()
    assert directions.grad.dtype == torch.float32 and directions.grad.any()


def test_opcheck():
    directions = unit_vectors(40)
    torch.library.opcheck(torch.ops.shencoder.sh_encode_forward.default, (directions, 4, torch.float32))
    torch.library.opcheck(torch.ops.shencoder.sh_encode_forward.default, (directions, 3, torch.float16))
    torch.library.opcheck(torch.ops.shencoder.sh_encode_backward.default, (torch.rand(40, 16), directions, 4))
    torch.library.opcheck(torch.ops.shencoder.sh_encode_backward.default, (torch.rand(40, 64).half(), directions, 8))


def test_module_and_non_contiguous_input():
    encoder = SHEncoder()
    assert encoder.output_size == 16 and SHEncoder(2).output_size == 4
    directions = unit_vectors(50)
    torch.testing.assert_close(encoder(directions.T.contiguous().T), encoder(directions))
    grad = torch.randn(50, 16)
    torch.testing.assert_close(sh_encode_backward(grad.T.contiguous().T, directions, 4), sh_encode_backward(grad, directions, 4))


@pytest.mark.parametrize(
    ("directions", "degree", "word", "kind"),
    [
        (torch.rand(4, 2), 4, "directions", ValueError),
        (torch.rand(12), 4, "directions", ValueError),
        (torch.rand(4, 3).half(), 4, "directions", TypeError),
        (torch.ones(4, 3, dtype=torch.int64), 4, "directions", TypeError),
        ([[0.0, 0.0, 1.0]], 4, "directions must be a tensor", TypeError),
        (torch.rand(4, 3), 9, "degree", ValueError),
        (torch.rand(4, 3), 2.5, "degree", ValueError),
        (torch.rand(4, 3), 0, "degree", ValueError),
    ],
)
def test_bad_arguments_are_named(directions, degree, word, kind):
    with pytest.raises(kind, match=word):
        sh_encode(directions, degree)


def test_bad_raw_arguments_are_named():
    with pytest.raises(ValueError, match="grad must be of shape"):
        sh_encode_backward(torch.rand(4, 15), torch.rand(4, 3), 4)
    with pytest.raises(TypeError, match="grad"):
        sh_encode_backward(torch.rand(4, 16).double(), torch.rand(4, 3), 4)
    with pytest.raises(TypeError, match="dtype must be"):
        sh_encode_forward(torch.rand(4, 3), 4, torch.float64)
    with pytest.raises(ValueError, match="degree"):
        sh_encode_forward(torch.rand(4, 3), 9, torch.float32)
    with pytest.raises(ValueError, match="degree"):
        SHEncoder(9)


@pytest.mark.gpu
@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("count", [0, 1, 128, 100_001])
def test_cuda_matches_twin(degree, count):
    directions = unit_vectors(count)
    double = directions.double()
    truth = reference.sh_encode_forward(double, degree, torch.float64)
    for dtype, tolerance in ((torch.float32, 4e-6), (torch.float16, 1e-3)):
        output = sh_encode_forward(directions.cuda(), degree, dtype)
        assert output.dtype == dtype
        torch.testing.assert_close(output.cpu().double(), truth, rtol=tolerance, atol=tolerance)
        grad = torch.randn(count, degree**2, generator=torch.Generator().manual_seed(SEED)).to(dtype)
        gradient = sh_encode_backward(grad.cuda(), directions.cuda(), degree)
        assert gradient.dtype == torch.float32
        expected = reference.sh_encode_backward(grad.double(), double, degree)
        torch.testing.assert_close(gradient.cpu().double(), expected, rtol=1e-5, atol=2e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cuda_reads_what_is_not_contiguous_or_not_aligned(dtype):
    grad = torch.randn(25 * 11 + 1, device="cuda").to(dtype)[1:].view(11, 25)
    directions = unit_vectors(11).cuda()
    expected = sh_encode_backward(grad.clone(), directions, 5)
    torch.testing.assert_close(sh_encode_backward(grad, directions, 5), expected)
    torch.testing.assert_close(sh_encode_backward(grad.T.contiguous().T, directions.T.contiguous().T, 5), expected)


@pytest.mark.gpu
def test_cuda_gradient_through_autocast():
    directions = unit_vectors(100).cuda().requires_grad_()
    with torch.autocast("cuda", dtype=torch.float16):
        output = SHEncoder(4)(directions)
    assert output.dtype == torch.float16
    (gradient,) = torch.autograd.grad(output.float().sum(), directions)
    expected = reference.sh_encode_backward(torch.ones(100, 16), directions.detach().cpu(), 4)
    torch.testing.assert_close(gradient.cpu(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.gpu
def test_second_stream_is_honoured_without_waiting():
    """The directions are written on the stream after a pause: a kernel on another stream would read them too early."""
    directions, grad = unit_vectors(100_000).cuda(), torch.randn(100_000, 16, device="cuda")
    late, stream = torch.zeros_like(directions), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), no_host_waits():
        torch.cuda._sleep(100_000_000)
        late.copy_(directions)
        output = sh_encode_forward(late, 4, torch.float32)
        gradient = sh_encode_backward(grad, late, 4)
    torch.cuda.synchronize()
    torch.testing.assert_close(output, sh_encode_forward(directions, 4, torch.float32), rtol=0, atol=0)
    torch.testing.assert_close(gradient, sh_encode_backward(grad, directions, 4), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_second_device_is_honoured():
    directions = unit_vectors(1000).to("cuda:1").requires_grad_()
    output = sh_encode(directions, 4)
    (gradient,) = torch.autograd.grad(output.sum(), directions)
    assert output.device == gradient.device == torch.device("cuda:1") and torch.cuda.current_device() == 0
    torch.testing.assert_close(output.cpu(), sh_encode(directions.cpu(), 4), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_mixed_devices_are_named():
    with pytest.raises(ValueError, match="grad is on"):
        sh_encode_backward(torch.rand(4, 16), torch.rand(4, 3).cuda(), 4)
    with pytest.raises(TypeError, match="directions must be float32"):
        sh_encode(torch.rand(4, 3).double().cuda(), 4)
