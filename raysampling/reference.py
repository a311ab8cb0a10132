"""The operators in plain PyTorch, the gradient by autograd, which the compiled ones are tested against.

Same names, arguments and results as in `ops`, the settings by position; serves where nothing can be compiled.
"""

import torch

OPEN_LENGTH = 1e10
LOSS_MARGIN = 1e-7
LOGIT_LIMIT = 15.0


class Density(torch.autograd.Function):
    """exp, whose derivative is taken at logits held to [-15, 15]."""

    @staticmethod
    def forward(ctx, logit):
        ctx.save_for_backward(logit)
        return logit.exp()

    @staticmethod
    def backward(ctx, grad):
        (logit,) = ctx.saved_tensors
        return grad * logit.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).exp()


def rays_with_samples(near, far, count):
    """[N] bool."""
    in_use = torch.arange(len(near), device=near.device) < count
    return in_use & near.isfinite() & far.isfinite() & (near < far)


def distance_at(edges, near, far):
    """t(u) [N, S + 1] in world units. 1 - g, the disparity, is interpolated beside g, for far away g has no digits left."""

    def spacing(t):
        return torch.where(t < 1, t / 2, 1 - 0.5 / t), torch.where(t < 1, 1 - t / 2, 0.5 / t)

    (g_near, rest_near), (g_far, rest_far) = spacing(near[:, None]), spacing(far[:, None])
    g = g_near + edges * (g_far - g_near)
    return torch.where(g < 0.5, 2 * g, 0.5 / (rest_far + (1 - edges) * (rest_near - rest_far)))


def lengths_of(edges, near, far, count):
    """dt [N, S]."""
    length = distance_at(edges, near, far).diff(dim=1)
    return torch.where(rays_with_samples(near, far, count)[:, None] & (length > 0), length, 0)


def contract(positions):
    """Of positions [..., 3]."""
    norm = positions.abs().amax(-1, keepdim=True)
    dominant = torch.zeros_like(positions, dtype=torch.bool).scatter(-1, positions.abs().argmax(-1, keepdim=True), True)
    bent = torch.where(dominant, torch.copysign(2 - 1 / norm, positions), positions / norm)
    return torch.where(norm > 1, bent, positions)


def weights_of(density, length):
    """w [N, S]; an interval without length is empty, even where the density is infinite."""
    depth = torch.where(length > 0, density * length, 0)
    before = torch.cat([torch.zeros_like(depth[:, :1]), depth.cumsum(1)[:, :-1]], 1)
    return (-before).exp() * -torch.expm1(-depth)


def place_samples(edges, origins, directions, near, far, count, contract_positions, last_open):
    """See `ops.place_samples`."""
    has_samples = rays_with_samples(near, far, count)[:, None]
    dt = lengths_of(edges, near, far, count)
    t = torch.where(has_samples, distance_at(edges, near, far)[:, :-1] + dt / 2, 0)
    positions = origins[:, None] + t[..., None] * directions[:, None]
    positions = contract(positions) if contract_positions else positions
    if last_open:
        dt[:, -1:] = torch.where(has_samples, OPEN_LENGTH, 0)
    sample_directions = directions[:, None].expand_as(positions)
    rays = torch.arange(len(edges), dtype=torch.int32, device=edges.device)[:, None].expand_as(t)
    positions, sample_directions = (torch.where(has_samples[..., None], x, 0) for x in (positions, sample_directions))
    ray_index = torch.where(has_samples, rays, -1)
    return positions.reshape(-1, 3), sample_directions.reshape(-1, 3), t.reshape(-1), dt.reshape(-1), ray_index.reshape(-1)


def resample(edges, logit, near, far, count, noise, intervals, padding, anneal):
    """See `ops.resample`."""
    length = lengths_of(edges, near, far, count)
    weights = weights_of(logit.to(edges.dtype).reshape(length.shape).exp(), length)
    mass = (weights if anneal is None else weights ** anneal.nan_to_num(1).clamp(0, 1)) + padding
    noise = noise.nan_to_num(0.5).clamp(0, 1).view(len(edges), noise.numel() // max(len(edges), 1))
    quantile = (torch.arange(intervals + 1, device=edges.device) + noise) / (intervals + 1)
    cumulative = torch.cat([torch.zeros_like(mass[:, :1]), mass.cumsum(1)], 1)
    whole = cumulative[:, -1:]
    even = ~(weights > 0).any(1, keepdim=True) | ~whole.isfinite() | (whole <= 0)
    wanted = quantile * torch.where(even, 0, whole)
    low = (torch.searchsorted(torch.where(even, 0, cumulative), wanted, right=True) - 1).clamp(0, mass.shape[1] - 1)
    part = ((wanted - cumulative.gather(1, low)) / cumulative.diff(dim=1).gather(1, low)).nan_to_num(0).clamp(0, 1)
    left, right = edges.gather(1, low), edges.gather(1, low + 1)
    drawn = torch.minimum(left + part * (right - left), right)
    spaced = torch.minimum(edges[:, :1] + quantile * (edges[:, -1:] - edges[:, :1]), edges[:, -1:])
    return torch.where(even, spaced, drawn).cummax(1).values, weights


def interlevel_loss(edges_ref, weights_ref, edges, logit, near, far, count):
    """See `ops.interlevel_loss`."""
    length = lengths_of(edges, near, far, count)
    overlapping = (edges[:, None, :-1] < edges_ref[:, 1:, None]) & (edges[:, None, 1:] > edges_ref[:, :-1, None])  # [N, S, Sp]
    has_samples = rays_with_samples(near, far, count)
    with torch.enable_grad():
        raw = logit.detach().to(edges.dtype).requires_grad_()
        weights = weights_of(Density.apply(raw.reshape(length.shape)), length)
        bound = torch.where(overlapping, weights[:, None], 0).sum(2)
        of_ray = ((weights_ref - bound).clamp(min=0).square() / (weights_ref + LOSS_MARGIN)).sum(1)
        loss = torch.where(has_samples, of_ray, 0).sum() / count.clamp(1, max(len(edges), 1))
    (gradient,) = torch.autograd.grad(loss, raw)
    return gradient, loss.detach()
