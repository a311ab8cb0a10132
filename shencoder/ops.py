"""The operators of the spherical-harmonics encoding: checks, automatic differentiation and their documentation."""

from pathlib import Path

import torch
from torch.autograd.function import once_differentiable

from kernel_build import load_kernels

from . import reference

MAX_DEGREE = 8  # as in src/shencoder_math.h
kernels = load_kernels(__package__, Path(__file__).parent) or reference


def sh_encode(directions, degree):
    """Real spherical harmonics Y_lm(direction), l < degree, at column l^2 + l + m, orthonormal on the unit sphere:

        Y_lm = N_lm Q_lm(z) C_m(x, y) for m >= 0,   N_lm Q_l|m|(z) S_|m|(x, y) for m < 0,

    with C_m + i S_m = (x + i y)^m, Q_lm = (-1)^m d^m P_l / dz^m of the Legendre polynomial P_l, and
    N_lm = sqrt((2 - [m = 0]) (2l + 1) / (4 pi) (l - |m|)! / (l + |m|)!): the signs of tiny-cuda-nn and of Ramamoorthi and Hanrahan's
    Cartesian forms with the Condon-Shortley phase (Y_1 = 0.4886 (-y, z, -x)).

    These are polynomials in x, y, z; a vector that is not of unit length gives the polynomials' values, a zero vector finite ones.
    Differentiable with respect to the directions, once.

    Args:
        directions: [M, 3] unit vectors, float32 or, on the CPU, float64.
        degree: 1 to 8.
    Returns:
        [M, degree^2] in the dtype of the directions; float32 ones under float16 autocast give float16, which halves what the next layer reads and would
        round to anyway (the polynomials are computed in float32, and so is the gradient).
    Raises:
        ValueError, TypeError: an argument of wrong shape or dtype, by name.
    """
    check_degree(degree)
    if not isinstance(directions, torch.Tensor):
        raise TypeError(f"directions must be a tensor, not {type(directions).__name__}")
    return SHEncode.apply(directions, degree)


class SHEncode(torch.autograd.Function):
    """Ties `sh_encode_forward` to `sh_encode_backward`."""

    @staticmethod
    def forward(ctx, directions, degree):
        device = directions.device.type
        halved = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16 and directions.dtype == torch.float32
        ctx.save_for_backward(directions)
        ctx.degree = degree
        return sh_encode_forward(directions, degree, torch.float16 if halved else directions.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (directions,) = ctx.saved_tensors
        return sh_encode_backward(grad, directions, ctx.degree), None


def sh_encode_forward(directions, degree, dtype):
    """The raw forward operator: [M, 3] -> [M, degree^2] of `dtype`, that of the directions or, for float32 ones, float16."""
    return kernels.sh_encode_forward(directions, degree, dtype)


def sh_encode_backward(grad, directions, degree):
    """The raw backward operator: grad [M, degree^2], float16 or like the directions -> [M, 3] like the directions."""
    return kernels.sh_encode_backward(grad, directions, degree)


def check_degree(degree):
    """Raises ValueError unless degree is a whole number from 1 to 8."""
    if not isinstance(degree, int) or not 1 <= degree <= MAX_DEGREE:
        raise ValueError(f"degree must be 1 to {MAX_DEGREE}, not {degree}")


def register_shapes():
    """Tells torch the operators' results without running them, for torch.compile, export and opcheck."""

    @torch.library.register_fake("shencoder::sh_encode_forward")
    def _(directions, degree, dtype):
        return directions.new_empty(directions.shape[0], degree**2, dtype=dtype)

    @torch.library.register_fake("shencoder::sh_encode_backward")
    def _(grad, directions, degree):
        return torch.empty_like(directions, memory_format=torch.contiguous_format)


if kernels is not reference:
    register_shapes()
