"""The spherical-harmonics encoding against its twin, against SciPy and against its own defining properties."""

import numpy
import pytest
import torch
from scipy import special

from shencoder import (
    SHEncoder,
    ops,
    reference,
    sh_encode,
    sh_encode_backward,
    sh_encode_forward,
)

SEED = 20240806


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


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 3001])
def test_forward_and_backward_match_twin(degree, dtype, count):
    directions = unit_vectors(count, dtype) * 1.3  # not of unit length: the polynomials themselves agree
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    output = sh_encode_forward(directions, degree, dtype)
    assert output.shape == (count, degree**2) and output.dtype == dtype
    torch.testing.assert_close(output, reference.sh_encode_forward(directions, degree, dtype), **tolerance)
    grad = torch.randn_like(output)
    gradient = sh_encode_backward(grad, directions, degree)
    assert gradient.shape == (count, 3) and gradient.dtype == dtype
    torch.testing.assert_close(gradient, reference.sh_encode_backward(grad, directions, degree), **tolerance)


def test_values_match_scipy():
    """SciPy's complex harmonics carry the Condon-Shortley phase; the real ones are sqrt(2) times their real and imaginary parts."""
    directions = unit_vectors(200, torch.float64)
    x, y, z = directions.numpy().T
    azimuth, polar = numpy.arctan2(y, x), numpy.arccos(numpy.clip(z, -1, 1))
    output = sh_encode(directions, 4).numpy()
    for order in range(4):
        for m in range(order + 1):
            value = special.sph_harm_y(order, m, polar, azimuth)
            scale = 1 if m == 0 else numpy.sqrt(2)
            numpy.testing.assert_allclose(output[:, order**2 + order + m], scale * value.real, atol=1e-12)
            if m > 0:
                numpy.testing.assert_allclose(output[:, order**2 + order - m], scale * value.imag, atol=1e-12)


def test_orthonormal_on_the_sphere():
    """Gauss-Legendre nodes in z and even steps in azimuth integrate polynomials of degree 6 exactly."""
    nodes, weights = numpy.polynomial.legendre.leggauss(8)
    azimuth = numpy.arange(16) * (2 * numpy.pi / 16)
    z, phi = numpy.meshgrid(nodes, azimuth, indexing="ij")
    radius = numpy.sqrt(1 - z**2)
    directions = torch.from_numpy(numpy.stack([radius * numpy.cos(phi), radius * numpy.sin(phi), z], -1).reshape(-1, 3))
    area = torch.from_numpy(numpy.repeat(weights, 16) * (2 * numpy.pi / 16))
    output = sh_encode(directions, 4)
    torch.testing.assert_close(output.T @ (area[:, None] * output), torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-12)


def test_zero_vectors_of_padding_rows_are_finite():
    directions = torch.zeros(3, 3, requires_grad=True)
    output = sh_encode(directions, 4)
    output.sum().backward()
    assert output.isfinite().all() and directions.grad.isfinite().all()


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
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


def test_module_and_non_contiguous_input():
    encoder = SHEncoder()
    assert encoder.output_size == 16 and SHEncoder(2).output_size == 4
    directions = unit_vectors(50)
    torch.testing.assert_close(encoder(directions.T.contiguous().T), encoder(directions))


@pytest.mark.parametrize(
    ("directions", "degree", "word", "kind"),
    [
        (torch.rand(4, 2), 4, "directions", ValueError),
        (torch.rand(12), 4, "directions", ValueError),
        (torch.rand(4, 3).half(), 4, "directions", TypeError),
        (torch.rand(4, 3), 5, "degree", ValueError),
        (torch.rand(4, 3), 0, "degree", ValueError),
    ],
)
def test_bad_arguments_are_named(directions, degree, word, kind):
    with pytest.raises(kind, match=word):
        sh_encode(directions, degree)


def test_bad_gradients_are_named():
    with pytest.raises(ValueError, match="grad must be of shape"):
        sh_encode_backward(torch.rand(4, 15), torch.rand(4, 3), 4)
    with pytest.raises(TypeError, match="grad"):
        sh_encode_backward(torch.rand(4, 16).double(), torch.rand(4, 3), 4)
    with pytest.raises(ValueError, match="degree"):
        SHEncoder(7)


@pytest.mark.gpu
@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 100_001])
def test_cuda_matches_cpu(degree, count):
    directions = unit_vectors(count)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 1e-3)):
        ours = sh_encode_forward(directions.cuda(), degree, dtype)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.cpu(), sh_encode_forward(directions, degree, dtype), rtol=tolerance, atol=tolerance)
        grad = torch.randn(count, degree**2).to(dtype)
        gradient = sh_encode_backward(grad.cuda(), directions.cuda(), degree)
        torch.testing.assert_close(gradient.cpu(), sh_encode_backward(grad, directions, degree), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_cuda_reads_a_gradient_that_is_not_aligned():
    grad = torch.randn(16 * 10 + 1, device="cuda")[1:].view(10, 16)
    directions = unit_vectors(10).cuda()
    torch.testing.assert_close(sh_encode_backward(grad, directions, 4), sh_encode_backward(grad.clone(), directions, 4))


@pytest.mark.gpu
def test_mixed_devices_are_named():
    with pytest.raises(ValueError, match="grad is on"):
        sh_encode_backward(torch.rand(4, 16), torch.rand(4, 3).cuda(), 4)
