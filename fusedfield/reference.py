"""The operators in plain PyTorch, on any device and in any float type: what the kernels must agree with. Signatures as in ops.py."""

import torch
from torch.nn import functional as F

import raymarching
from gridencoder import grid_encode
from shencoder import sh_encode

GEOMETRY_LAYERS = 3
STEPS = 16  # samples a ray and round of a picture


def ngp(encoding, directions, weights, count=None, start=0.0):
    """[M, 32], [M, 3] -> raw [M, 4]."""
    geometry = _network(encoding, weights[:GEOMETRY_LAYERS])
    view = sh_encode(directions, 4).to(encoding.dtype)
    colour = _network(torch.cat([geometry[:, 1:], view], dim=-1), weights[GEOMETRY_LAYERS:])
    return _in_use(torch.cat([geometry[:, :1] + start, colour], dim=-1), count)


def ngp_at(positions, directions, table, offsets, resolutions, bound, weights, count=None, start=0.0):
    """[M, 3], [M, 3] -> raw [M, 4]."""
    return ngp(_encode(positions, table, offsets, resolutions, bound), directions, weights, count, start)


def ngp_density_at(positions, table, offsets, resolutions, bound, weights, count=None, start=0.0):
    """[M, 3] -> log density [M]."""
    return _in_use(_network(_encode(positions, table, offsets, resolutions, bound), weights[:GEOMETRY_LAYERS])[:, 0] + start, count)


def ngp_backward(encoding, directions, weights, count, gradient, scale, view):
    """Gradients at the encoding, the weights (one after the other) and, if `view`, at the spherical harmonics."""
    harmonics = sh_encode(directions, 4).to(encoding.dtype)

    def run(encoding, harmonics, *weights):
        geometry = _network(encoding, weights[:GEOMETRY_LAYERS])
        colour = _network(torch.cat([geometry[:, 1:], harmonics], dim=-1), weights[GEOMETRY_LAYERS:])
        return torch.cat([geometry[:, :1], colour], dim=-1)

    of_encoding, of_view, *of_weights = _gradients(run, (encoding, harmonics, *weights), count, gradient, scale)
    return of_encoding, _flat(of_weights), of_view if view else of_view[:0]


def ngp_render(
    origins, directions, near, far, bitfield, table, offsets, resolutions, bound, weights, start, march_bound, cascades, grid_size, contract, dt_gamma, max_steps, T_thresh
):  # fmt: skip
    """Rays -> features [N, 3], opacity [N], depth [N], a few samples of each ray at a time."""
    settings = {"bound": march_bound, "cascades": cascades, "grid_size": grid_size, "contract": contract, "dt_gamma": dt_gamma, "max_steps": max_steps}
    features, opacity, depth = torch.zeros_like(origins), torch.zeros_like(near), torch.zeros_like(near)
    t, alive = near.clone(), torch.arange(len(near), dtype=torch.int32, device=near.device)
    while len(alive):
        positions, turned, middle, dt, following = raymarching.march_rays(alive, t, origins, directions, far, bitfield, steps=STEPS, **settings)
        raw = ngp_at(positions, turned, table, offsets, resolutions, bound, weights, start=start).float()
        raymarching.composite_rays(alive, t, following, raw[:, 0].exp(), raw[:, 1:].sigmoid(), middle, dt, features, opacity, depth, T_thresh)
        alive = alive[alive >= 0]
    return features, opacity, depth


def merf(encodings, weights, density_limit, feature_limit, count=None):
    """Four [M, 32] -> raw [M, 8]."""
    return _in_use(_limited(_network(sum(encodings), weights), density_limit, feature_limit), count)


def merf_at(positions, tables, offsets, resolutions, bound, weights, density_limit, feature_limit, count=None):
    """[M, 3] -> raw [M, 8]."""
    encodings = [grid_encode(at, *grid) for at, *grid in zip(merf_coordinates(positions, bound), tables, offsets, resolutions, strict=True)]
    return merf(encodings, weights, density_limit, feature_limit, count)


def merf_density_at(positions, tables, offsets, resolutions, bound, weights, density_limit, feature_limit, count=None):
    """[M, 3] -> log density [M]."""
    return merf_at(positions, tables, offsets, resolutions, bound, weights, density_limit, feature_limit, count)[:, 0]


def merf_backward(encodings, weights, density_limit, feature_limit, count, gradient, scale):
    """Gradients at each of the encodings, which have the same, and at the weights (one after the other)."""

    def run(encoding, *weights):
        return _limited(_network(encoding, weights), density_limit, feature_limit)

    of_encoding, *of_weights = _gradients(run, (sum(encodings), *weights), count, gradient, scale)
    return of_encoding, _flat(of_weights)


def merf_coordinates(positions, bound):
    """Positions in [-bound, bound]^3 -> where they lie in the unit cube and in its planes xy, yz and xz."""
    unit = (positions + bound) / (2 * bound)
    return unit, unit[:, :2], unit[:, 1:], unit[:, ::2]


def _limited(x, density_limit, feature_limit):
    limits = torch.tensor([density_limit] + [feature_limit] * (x.shape[1] - 1), dtype=x.dtype, device=x.device)
    return torch.tanh(x / limits) * limits


def proposal(encoding, weights, count=None):
    """[M, K] -> log density [M]."""
    return _in_use(_network(encoding, weights)[:, 0], count)


def proposal_at(positions, table, offsets, resolutions, bound, weights, count=None):
    """[M, 3] -> log density [M]."""
    return proposal(_encode(positions, table, offsets, resolutions, bound), weights, count)


def proposal_backward(encoding, weights, count, gradient, scale):
    """Gradients at the encoding and the weights (one after the other)."""
    of_encoding, *of_weights = _gradients(lambda encoding, *weights: _network(encoding, weights)[:, 0], (encoding, *weights), count, gradient, scale)
    return of_encoding, _flat(of_weights)


def _network(x, weights):
    for weight in weights[:-1]:
        x = torch.relu(F.linear(x, weight.to(x.dtype)))
    return F.linear(x, weights[-1].to(x.dtype))


def _encode(positions, table, offsets, resolutions, bound):
    return grid_encode((positions + bound) / (2 * bound), table, offsets, resolutions)


def _in_use(rows, count):
    """Rows from `count` on become zeros."""
    if count is None:
        return rows
    used = torch.arange(len(rows), device=rows.device) < count
    return torch.where(used.view(-1, *[1] * (rows.dim() - 1)), rows, 0)


def _gradients(run, inputs, count, gradient, scale):
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        results = run(*leaves)
        upstream = gradient if scale is None else gradient * scale
        return torch.autograd.grad(results, leaves, _in_use(upstream, count).to(results.dtype))


def _flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])
