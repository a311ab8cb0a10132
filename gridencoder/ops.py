"""The operators of the hash grid: argument checks, automatic differentiation and their documentation.

Notation: M samples, D dimensions, L levels, F features an entry, E entries of all levels together.
"""

from pathlib import Path

import torch
from torch.autograd.function import once_differentiable

from kernel_build import load_kernels

from . import reference

kernels = load_kernels(__package__, Path(__file__).parent) or reference


def grid_encode(
    positions, table, offsets, resolutions, gridtype="hash", interpolation="linear", align_corners=False, half_copy=None, gradient=None
):
    """Features of a multi-resolution grid at the given positions (Mueller et al. 2022, section 3).

    Level l has resolution_l^D entries on a regular grid over the unit cube and is read at x by interpolation between the 2^D entries
    around. They sit at the centres of resolution_l cells along an axis: x = position * resolution_l - 0.5, constant beyond the outermost
    centres. With `align_corners` they sit at the corners of resolution_l - 1 cells: x = position * (resolution_l - 1).

    A level with at least resolution^D rows in the table is dense, x fastest. Any other must have a power of two of rows. With the gridtype
    "hash" its index is the exclusive or of cell * prime, primes 1, 2654435761, 805459861 (equation 4); with "tiled" the dense index; either
    modulo the rows.

    Differentiable with respect to the table and the positions, once. The gradient of the table is accumulated in float32 (float64 for a
    float64 table) and returned in the table's dtype; on CUDA its summation order, hence its last bits, vary from call to call. That of the
    positions is computed only where they require it, from the table read again: it must not be changed in between. With "linear" it jumps
    from cell to cell; it is zero where the value is constant.

    Args:
        positions: [M, D] in [0, 1], float32 (float64 with a float64 table), D 2 or 3. Outside, or NaN: zero features and no gradient.
        table: [E, F] float32, float16 or, on the CPU, float64; F 1, 2, 4 or 8. Under float16 autocast it is read as float16, cast once in
            this call.
        offsets: [L + 1] int32, first entry of each level; the last element is E.
        resolutions: [L] int32, entries along an axis.
        gridtype: "hash" or "tiled".
        interpolation: "linear", weights t and 1 - t; or "smoothstep", t replaced by 3 t^2 - 2 t^3, which has a continuous derivative.
        align_corners: whether entries sit at the corners of cells, not at their centres.
        half_copy: [E, F] float16, the table's values; read under float16 autocast in place of a cast. Whoever changes the table keeps it equal.
        gradient: [E, F] float32 (float64 for a float64 table), contiguous; the backward pass adds the table's gradient to it in place and
            hands none to autograd, which saves a buffer of the table's size, its zeroing and an addition.
    Returns:
        [M, L * F], levels outermost, of the dtype in which the table is read.
    Raises:
        ValueError, TypeError: an argument of wrong shape, device, dtype or value, by name. Offsets and resolutions that do not fit the
            table are named on the CPU; on CUDA, where reading them would wait for the device, a level outside the table gives zeros.
    """
    for name, tensor in {"positions": positions, "table": table, "offsets": offsets, "resolutions": resolutions}.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
    return GridEncode.apply(positions, table, offsets, resolutions, half_copy, gradient, gridtype, interpolation, align_corners)


class GridEncode(torch.autograd.Function):
    """Ties `grid_encode_forward` to its two gradients; the table is kept for the backward pass only where the positions need theirs."""

    @staticmethod
    def forward(ctx, positions, table, offsets, resolutions, half_copy, gradient, *options):
        device = positions.device.type
        half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        ctx.table_shape, ctx.table_dtype, ctx.gradient, ctx.options = table.shape, table.dtype, gradient, options
        if half:
            table = table.half() if half_copy is None else half_copy
        ctx.save_for_backward(positions, offsets, resolutions, table if ctx.needs_input_grad[0] else None)
        return grid_encode_forward(positions, table, offsets, resolutions, *options)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        positions, offsets, resolutions, table = ctx.saved_tensors
        of_positions = of_table = None
        if ctx.needs_input_grad[0]:
            of_positions = grid_encode_backward_positions(grad, positions, table, offsets, resolutions, *ctx.options)
        if ctx.needs_input_grad[1] and ctx.gradient is not None:
            add_grid_encode_gradient(ctx.gradient, grad, positions, offsets, resolutions, *ctx.options)
        elif ctx.needs_input_grad[1]:
            of_table = grid_encode_backward(grad, positions, offsets, resolutions, *ctx.table_shape, *ctx.options).to(ctx.table_dtype)
        return of_positions, of_table, *[None] * 7


def grid_encode_forward(positions, table, offsets, resolutions, gridtype="hash", interpolation="linear", align_corners=False):
    """The raw forward operator: `grid_encode` without differentiation and without autocast."""
    return kernels.grid_encode_forward(positions, table, offsets, resolutions, gridtype, interpolation, align_corners)


def add_grid_encode_gradient(
    gradient, grad, positions, offsets, resolutions, gridtype="hash", interpolation="linear", align_corners=False
):
    """Adds to `gradient` [E, F], in place, what `grid_encode_backward` returns; contiguous float32 (float64 for a float64 grad).

    Args, Raises: as `grid_encode_backward`.
    """
    kernels.add_grid_encode_gradient(gradient, grad, positions, offsets, resolutions, gridtype, interpolation, align_corners)


def grid_encode_backward(
    grad, positions, offsets, resolutions, entries, features, gridtype="hash", interpolation="linear", align_corners=False
):
    """The raw backward operator: gradient with respect to the table.

    Args:
        grad: [M, L * F] float32, float16 or, on the CPU, float64. A sample's level whose gradient is all zero costs no memory traffic.
        entries, features: E and F of the table.
        The others: as in `grid_encode`.
    Returns:
        [E, F] float32 (float64 for a float64 gradient).
    Raises: as `grid_encode`.
    """
    return kernels.grid_encode_backward(
        grad, positions, offsets, resolutions, entries, features, gridtype, interpolation, align_corners
    )


def grid_encode_backward_positions(
    grad, positions, table, offsets, resolutions, gridtype="hash", interpolation="linear", align_corners=False
):
    """The raw backward operator: gradient with respect to the positions, exact derivative of the interpolation; repeatable bit for bit.

    Args:
        grad: [M, L * F] in the table's dtype.
        The others: as in `grid_encode`.
    Returns:
        [M, D] in the dtype of the positions; zero for positions outside [0, 1] or NaN.
    Raises: as `grid_encode`.
    """
    return kernels.grid_encode_backward_positions(
        grad, positions, table, offsets, resolutions, gridtype, interpolation, align_corners
    )


def add_total_variation_gradient(
    table, gradient, offsets, resolutions, positions, weight, gridtype="hash", align_corners=False
):
    """Adds to `gradient`, in place, the gradient with respect to the table of the total variation around the given positions,

        weight / P * sum over positions p, levels l, axes d of | table_l[c] - table_l[c + e_d] |^2,

    where c is the cell that contains p, floor(p * resolution_l) or, with aligned corners, floor(p * (resolution_l - 1)), and e_d one step
    along axis d; terms whose c + e_d lies beyond the grid, and positions outside [0, 1] or NaN, are absent (P counts them all the same).

    Args:
        table: [E, F] float32 or, on the CPU, float64.
        gradient: like the table, contiguous, changed in place.
        offsets, resolutions, gridtype, align_corners: as in `grid_encode`; the interpolation plays no part.
        positions: [P, D] in the table's dtype.
        weight: [1] float32 on the same device, so that a loss scale kept on the device can be folded in.
    Raises:
        ValueError, TypeError: an argument of wrong shape, device, dtype or value, by name.
    """
    kernels.add_total_variation_gradient(
        table.detach(), gradient, offsets, resolutions, positions, weight, gridtype, align_corners
    )


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
    def _(positions, table, offsets, resolutions, gridtype="hash", interpolation="linear", align_corners=False):
        return table.new_empty(positions.shape[0], resolutions.shape[0] * table.shape[1])

    @torch.library.register_fake("gridencoder::grid_encode_backward")
    def _(grad, positions, offsets, resolutions, entries, features, gridtype="hash", interpolation="linear", align_corners=False):
        return positions.new_empty(entries, features)

    @torch.library.register_fake("gridencoder::add_grid_encode_gradient")
    def _(gradient, grad, positions, offsets, resolutions, gridtype="hash", interpolation="linear", align_corners=False):
        return None

    @torch.library.register_fake("gridencoder::grid_encode_backward_positions")
    def _(grad, positions, table, offsets, resolutions, gridtype="hash", interpolation="linear", align_corners=False):
        return positions.new_empty(positions.shape)

    @torch.library.register_fake("gridencoder::add_total_variation_gradient")
    def _(table, gradient, offsets, resolutions, positions, weight, gridtype="hash", align_corners=False):
        return None

    @torch.library.register_fake("gridencoder::add_weight_decay_gradient")
    def _(table, gradient, offsets, weight):
        return None


if kernels is not reference:
    register_shapes()
