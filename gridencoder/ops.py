"""The operators of the hash grid: argument checks, automatic differentiation and their documentation.

Notation: M samples, D dimensions, L levels, F features an entry, E entries of all levels together.
"""

from pathlib import Path

import torch
from torch.autograd.function import once_differentiable

from kernel_build import load_kernels

from . import reference

kernels = load_kernels(__package__, Path(__file__).parent) or reference


def grid_encode(positions, table, offsets, resolutions):
    """Features of a multi-resolution hash grid at the given positions (Mueller et al. 2022, section 3).

    An entry sits at the centre of each cell: level l is read at x = position * resolution_l - 0.5, linearly interpolated between the 2^D
    entries around, constant beyond the outermost centres. A level with at least resolution^D entries is dense (x fastest); any other is
    indexed by the exclusive or of cell * prime, primes 1, 2654435761, 805459861, and must have a power of two of entries.

    Differentiable with respect to the table, once. The gradient is accumulated in float32 (float64 for a float64 table) and returned in
    the table's dtype; on CUDA its summation order, hence its last bits, vary from call to call.

    Args:
        positions: [M, D] in [0, 1], float32 (float64 with a float64 table). Outside, or NaN: zero features and no gradient.
        table: [E, F] float32, float16 or, on the CPU, float64. Under float16 autocast it is read as float16, cast once in this call.
        offsets: [L + 1] int32, first entry of each level; the last element is E.
        resolutions: [L] int32, cells along an axis.
    Returns:
        [M, L * F], levels outermost, of the dtype in which the table is read.
    Raises:
        ValueError, TypeError: an argument of wrong shape, device or dtype, by name; positions that require a gradient.
    """
    if positions.requires_grad and torch.is_grad_enabled():
        raise ValueError("positions require a gradient, which grid_encode does not give: pass positions.detach()")
    return GridEncode.apply(positions, table, offsets, resolutions)


class GridEncode(torch.autograd.Function):
    """Ties `grid_encode_forward` to `grid_encode_backward`; the table itself is not kept for the backward pass."""

    @staticmethod
    def forward(ctx, positions, table, offsets, resolutions):
        device = positions.device.type
        half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        ctx.save_for_backward(positions, offsets, resolutions)
        ctx.table_shape, ctx.table_dtype = table.shape, table.dtype
        return grid_encode_forward(positions, table.half() if half else table, offsets, resolutions)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        positions, offsets, resolutions = ctx.saved_tensors
        gradient = grid_encode_backward(grad, positions, offsets, resolutions, *ctx.table_shape)
        return None, gradient.to(ctx.table_dtype), None, None


def grid_encode_forward(positions, table, offsets, resolutions):
    """The raw forward operator: `grid_encode` without differentiation and without autocast."""
    return kernels.grid_encode_forward(positions, table, offsets, resolutions)


def grid_encode_backward(grad, positions, offsets, resolutions, entries, features):
    """The raw backward operator: gradient with respect to the table.

    Args:
        grad: [M, L * F] float32, float16 or, on the CPU, float64. A sample's level whose gradient is all zero costs no memory traffic.
        positions, offsets, resolutions: as in `grid_encode`.
        entries, features: E and F of the table.
    Returns:
        [E, F] float32 (float64 for a float64 gradient).
    """
    return kernels.grid_encode_backward(grad, positions, offsets, resolutions, entries, features)


def add_total_variation_gradient(table, gradient, offsets, resolutions, positions, weight):
    """Adds to `gradient`, in place, the gradient with respect to the table of the total variation around the given positions,

        weight / P * sum over positions p, levels l, axes d of | table_l[c] - table_l[c + e_d] |^2,

    where c = floor(p * resolution_l) is the cell that contains p and e_d one step along axis d; terms whose c + e_d lies beyond the grid,
    and positions outside [0, 1] or NaN, are absent (P counts them all the same).

    Args:
        table: [E, F] float32 or, on the CPU, float64.
        gradient: like the table, contiguous, changed in place.
        offsets, resolutions: as in `grid_encode`.
        positions: [P, D] in the table's dtype.
        weight: [1] float32 on the same device, so that a loss scale kept on the device can be folded in.
    Raises:
        ValueError, TypeError: an argument of wrong shape, device or dtype, by name.
    """
    kernels.add_total_variation_gradient(table.detach(), gradient, offsets, resolutions, positions, weight)


def add_weight_decay_gradient(table, gradient, offsets, weight):
    """Adds to `gradient`, in place, the gradient with respect to the table of  weight * sum over levels of mean(table_l^2),

    the mean being over all entries and features of the level: a coarse level with few entries counts as much as a fine one.

    Args: as in `add_total_variation_gradient`.
    Raises: likewise.
    """
    kernels.add_weight_decay_gradient(table.detach(), gradient, offsets, weight)


def register_shapes():
    """Tells torch the operators' results without running them, for torch.compile, export and opcheck."""

    @torch.library.register_fake("gridencoder::grid_encode_forward")
    def _(positions, table, offsets, resolutions):
        return table.new_empty(positions.shape[0], resolutions.shape[0] * table.shape[1])

    @torch.library.register_fake("gridencoder::grid_encode_backward")
    def _(grad, positions, offsets, resolutions, entries, features):
        return positions.new_empty(entries, features)

    @torch.library.register_fake("gridencoder::add_total_variation_gradient")
    def _(table, gradient, offsets, resolutions, positions, weight):
        return None

    @torch.library.register_fake("gridencoder::add_weight_decay_gradient")
    def _(table, gradient, offsets, weight):
        return None


if kernels is not reference:
    register_shapes()
