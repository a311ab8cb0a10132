"""The operators of the frequency encoding: checks, automatic differentiation and their documentation."""

from pathlib import Path

import torch
from torch.autograd.function import once_differentiable

from kernel_build import load_kernels

from . import reference

MAX_DEGREE, MAX_DIMENSIONS = 24, 64  # as in src/freqencoder_math.h
kernels = load_kernels(__package__, Path(__file__).parent) or reference


def freq_encode(positions, degree, include_input=True):
    """Sines and cosines of each coordinate at `degree` octaves (Mildenhall et al. 2020, NeRF, equation 4, but without its factor pi):

        [x, sin(x), cos(x), sin(2 x), cos(2 x), ..., sin(2^(degree - 1) x), cos(2^(degree - 1) x)],

    where each entry stands for D adjacent columns, one a coordinate, and the first is there with `include_input`. With j = [include_input],
    coordinate d of octave k has its sine in column (j + 2k) D + d and its cosine D columns further: the order of torch-ngp.

    2^k x is exact and its sine and cosine are accurate to about a unit in the last place, however large it is. A NaN or infinite coordinate
    gives NaN in its own sines, cosines and gradient, and nowhere else. Differentiable with respect to the positions, once.

    Args:
        positions: [M, D], D from 1 to 64, any unit of length, float32 or, on the CPU, float64.
        degree: octaves, 1 to 24 (float32 has no digits left for more).
        include_input: whether the coordinates themselves come first.
    Returns:
        [M, D (2 degree + j)] in the dtype of the positions; float32 ones under float16 autocast give float16, which halves what the next layer reads and
        would round to anyway (the sines and cosines are computed in float32, and so is the gradient).
    Raises:
        ValueError, TypeError: an argument of wrong shape or dtype, by name.
    """
    check_degree(degree)
    if not isinstance(positions, torch.Tensor):
        raise TypeError(f"positions must be a tensor, not {type(positions).__name__}")
    return FreqEncode.apply(positions, degree, bool(include_input))


class FreqEncode(torch.autograd.Function):
    """Ties `freq_encode_forward` to `freq_encode_backward`."""

    @staticmethod
    def forward(ctx, positions, degree, include_input):
        device = positions.device.type
        halved = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16 and positions.dtype == torch.float32
        ctx.save_for_backward(positions)
        ctx.degree, ctx.include_input = degree, include_input
        return freq_encode_forward(positions, degree, include_input, torch.float16 if halved else positions.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (positions,) = ctx.saved_tensors
        return freq_encode_backward(grad, positions, ctx.degree, ctx.include_input), None, None


def freq_encode_forward(positions, degree, include_input, dtype):
    """The raw forward operator: [M, D] -> [M, D (2 degree + j)] of `dtype`, that of the positions or, for float32 ones, float16."""
    return kernels.freq_encode_forward(positions, degree, include_input, dtype)


def freq_encode_backward(grad, positions, degree, include_input):
    """The raw backward operator: grad [M, D (2 degree + j)], float16 or like the positions -> [M, D] like the positions."""
    return kernels.freq_encode_backward(grad, positions, degree, include_input)


def check_degree(degree):
    """Raises ValueError unless degree is a whole number from 1 to 24."""
    if not isinstance(degree, int) or not 1 <= degree <= MAX_DEGREE:
        raise ValueError(f"degree must be 1 to {MAX_DEGREE}, not {degree}")


def check_dimensions(dimensions):
    """Raises ValueError unless dimensions is a whole number from 1 to 64."""
    if not isinstance(dimensions, int) or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ValueError(f"dimensions must be 1 to {MAX_DIMENSIONS}, not {dimensions}")


def register_shapes():
    """Tells torch the operators' results without running them, for torch.compile, export and opcheck."""

    @torch.library.register_fake("freqencoder::freq_encode_forward")
    def _(positions, degree, include_input, dtype):
        return positions.new_empty(positions.shape[0], positions.shape[1] * (2 * degree + include_input), dtype=dtype)

    @torch.library.register_fake("freqencoder::freq_encode_backward")
    def _(grad, positions, degree, include_input):
        return torch.empty_like(positions, memory_format=torch.contiguous_format)


if kernels is not reference:
    register_shapes()
