"""The raw operators in plain PyTorch: the truth that the compiled forms are tested against, and what serves where nothing can be compiled.

Same names, arguments and results as in `ops`. Works on any device; reads the level layout on the host.
"""

import itertools

import torch

PRIMES = (1, 2654435761, 805459861)


def grid_encode_forward(positions, table, offsets, resolutions, gridtype="hash", interpolation="linear", align_corners=False):
    """[M, D], [E, F] -> [M, L * F] in the table's dtype, computed in the dtype of the positions; differentiable by autograd."""
    check_options(gridtype, interpolation)
    inside = ((positions >= 0) & (positions <= 1)).all(1)
    safe = torch.where(inside[:, None], positions, 0.5)
    levels = []
    for first, entries, resolution in layout(offsets, resolutions):
        level_table = table[first : first + entries].to(positions.dtype)
        x = safe * (resolution - 1) if align_corners else (safe * resolution - 0.5).clamp(0, resolution - 1)
        low = x.floor().long().clamp(max=max(resolution - 2, 0))
        fraction = x - low
        if interpolation == "smoothstep":
            fraction = fraction**2 * (3 - 2 * fraction)
        features = 0
        for corner in itertools.product((0, 1), repeat=positions.shape[1]):
            step = torch.tensor(corner, device=positions.device)
            weight = torch.where(step == 1, fraction, 1 - fraction).prod(1)
            cell = (low + step).clamp(max=resolution - 1)
            features = features + weight[:, None] * level_table[cell_index(cell, resolution, entries, gridtype)]
        levels.append(torch.where(inside[:, None], features, 0))
    return torch.cat(levels, 1).to(table.dtype)


def grid_encode_backward(
    grad, positions, offsets, resolutions, entries, features, gridtype="hash", interpolation="linear", align_corners=False
):
    """[M, L * F] -> [E, F] in the dtype of the positions: autograd through `grid_encode_forward`, which is linear in the table."""
    with torch.enable_grad():
        table = torch.zeros(entries, features, dtype=positions.dtype, device=positions.device, requires_grad=True)
        output = grid_encode_forward(positions, table, offsets, resolutions, gridtype, interpolation, align_corners)
        return torch.autograd.grad(output, table, grad.to(positions.dtype))[0]


def add_grid_encode_gradient(
    gradient, grad, positions, offsets, resolutions, gridtype="hash", interpolation="linear", align_corners=False
):
    """Adds the gradient of `grid_encode_backward` to `gradient`, in place."""
    gradient += grid_encode_backward(grad, positions, offsets, resolutions, *gradient.shape, gridtype, interpolation, align_corners)


def grid_encode_backward_positions(
    grad, positions, table, offsets, resolutions, gridtype="hash", interpolation="linear", align_corners=False
):
    """[M, L * F] -> [M, D] in the dtype of the positions: autograd through `grid_encode_forward`."""
    with torch.enable_grad():
        variable = positions.detach().requires_grad_()
        table = table.detach().to(positions.dtype)
        output = grid_encode_forward(variable, table, offsets, resolutions, gridtype, interpolation, align_corners)
        return torch.autograd.grad(output, variable, grad.to(positions.dtype))[0]


def total_variation(table, offsets, resolutions, positions, weight, gridtype="hash", align_corners=False):
    """The scalar whose gradient `add_total_variation_gradient` adds."""
    inside = ((positions >= 0) & (positions <= 1)).all(1)
    safe = torch.where(inside[:, None], positions, 0.5)
    total = 0
    for first, entries, resolution in layout(offsets, resolutions):
        level_table = table[first : first + entries]
        cells = resolution - 1 if align_corners else resolution
        cell = (safe * cells).long().clamp(max=max(cells - 1, 0))
        here = level_table[cell_index(cell, resolution, entries, gridtype)]
        for axis in range(positions.shape[1]):
            upper = cell.clone()
            upper[:, axis] = (upper[:, axis] + 1).clamp(max=resolution - 1)
            counts = inside & (cell[:, axis] + 1 < resolution)
            difference = here - level_table[cell_index(upper, resolution, entries, gridtype)]
            total = total + torch.where(counts, difference.square().sum(1), 0).sum()
    return weight[0].to(table.dtype) * total / max(positions.shape[0], 1)


def weight_decay(table, offsets, weight):
    """The scalar whose gradient `add_weight_decay_gradient` adds."""
    ends = offsets.tolist()
    return weight[0].to(table.dtype) * sum(table[first:end].square().mean() for first, end in itertools.pairwise(ends))


def add_total_variation_gradient(
    table, gradient, offsets, resolutions, positions, weight, gridtype="hash", align_corners=False
):
    """Adds the gradient of `total_variation` to `gradient`, in place."""
    check_options(gridtype, "linear")
    _add_gradient(
        gradient, table, lambda variable: total_variation(variable, offsets, resolutions, positions, weight, gridtype, align_corners)
    )


def add_weight_decay_gradient(table, gradient, offsets, weight):
    """Adds the gradient of `weight_decay` to `gradient`, in place."""
    _add_gradient(gradient, table, lambda variable: weight_decay(variable, offsets, weight))


def _add_gradient(gradient, table, scalar):
    with torch.enable_grad():
        variable = table.detach().requires_grad_()
        gradient += torch.autograd.grad(scalar(variable), variable)[0]


def layout(offsets, resolutions):
    """For each level: first entry, number of entries, cells along an axis."""
    first = offsets.tolist()
    return [(a, b - a, resolution) for (a, b), resolution in zip(itertools.pairwise(first), resolutions.tolist(), strict=True)]


def cell_index(cell, resolution, entries, gridtype):
    """[M, D] int64 cells -> [M] index within the level: dense where every cell has an entry, else tiled or hashed."""
    dimensions = cell.shape[1]
    dense = resolution**dimensions <= entries
    if dense or gridtype == "tiled":
        index = sum(cell[:, d] * resolution**d for d in range(dimensions))
        return index if dense else index % entries
    index = cell[:, 0] * PRIMES[0]
    for d in range(1, dimensions):
        index = index ^ (cell[:, d] * PRIMES[d])
    return index & (entries - 1)


def check_options(gridtype, interpolation):
    """Raises ValueError, naming the argument, as the compiled operators do."""
    if gridtype not in ("hash", "tiled"):
        raise ValueError(f"gridtype must be 'hash' or 'tiled', not {gridtype!r}")
    if interpolation not in ("linear", "smoothstep"):
        raise ValueError(f"interpolation must be 'linear' or 'smoothstep', not {interpolation!r}")
