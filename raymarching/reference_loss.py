"""The loss of composited pixels in plain PyTorch: what the kernel is tested against, and the fallback where nothing can be compiled.

Same name, arguments and results as the raw operator (see loss.py).
"""

import torch

from .reference import composite_rays_train_backward, composite_rays_train_forward

LOGIT_LIMIT = 15.0
ENTROPY_MARGIN = 1e-5


def composite_loss(
    raw, dt, rays, counts, target, background, T_thresh, entropy_weight, spacing, distortion_weight, t, near_scale, want_weights
):  # fmt: skip
    raw = raw.to(dt.dtype)
    used, kept = counts[0].clamp(0, len(raw)), counts[1].clamp(0, len(rays))
    in_use = torch.arange(len(rays), device=rays.device) < kept
    rays = torch.where((in_use & (rays.long().sum(1) <= used))[:, None], rays, 0)
    medium = raw[:, 0].exp(), raw[:, 1:].sigmoid(), torch.zeros_like(dt), dt, rays
    features, opacity, _, weights = composite_rays_train_forward(*medium, T_thresh)
    with torch.enable_grad():
        seen = [value.detach().requires_grad_() for value in (features, opacity, weights)]
        loss, squared_error = pixel_losses(*seen[:2], target, background, in_use, entropy_weight)
        if distortion_weight:
            loss = loss + distortion_weight * distortion(seen[2], spacing, rays) / in_use.sum().clamp(min=1)
    cotangents = torch.autograd.grad(loss, seen, allow_unused=True)
    at_density, at_colours = composite_rays_train_backward(cotangents[0], cotangents[1], None, cotangents[2], *medium, T_thresh)
    slope = raw[:, 0].clamp(-LOGIT_LIMIT, LOGIT_LIMIT).exp()
    delta = torch.cat([(at_density * slope)[:, None], at_colours * medium[1] * (1 - medium[1])], 1)
    if near_scale:
        delta = torch.where(delta == 0, delta, delta * (t / near_scale).square().clamp(max=1)[:, None])
    return delta, torch.stack([loss, squared_error]).detach(), weights if want_weights else weights[:0]


def pixel_losses(features, opacity, target, background, in_use, entropy_weight):
    """(loss, mean squared error), both []: features [N, 3], opacity [N], target [N, 3 or 4], background [N, 3], in_use [N] bool."""

    def ray_mean(values):
        return torch.where(in_use, values, 0).sum() / in_use.sum().clamp(min=1)

    wanted = target[:, :3]
    if target.shape[1] == 4:
        wanted = wanted * target[:, 3:] + background * (1 - target[:, 3:])
    squared_error = ray_mean((features + (1 - opacity)[:, None] * background - wanted).square().mean(1))
    p = opacity.clamp(ENTROPY_MARGIN, 1 - ENTROPY_MARGIN)
    return squared_error - entropy_weight * ray_mean(p * p.log2() + (1 - p) * (1 - p).log2()), squared_error


def distortion(weights, spacing, rays):
    """Sum of the rays' distortion, []: weights [M], spacing [M, 2], rays [N, 2]. Rays are laid side by side, [N, longest]."""
    first, count = rays.long().unbind(1)
    along = torch.arange(int(count.max()) if len(count) else 0, device=rays.device)
    inside = along < count[:, None]
    row = torch.where(inside, first[:, None] + along, 0)
    begin, end = torch.where(inside[..., None], spacing[row], 0).unbind(2)
    w, m = torch.where(inside, weights[row], 0), (begin + end) / 2
    before = m * (w.cumsum(1) - w) - ((w * m).cumsum(1) - w * m)  # of sample i: the sum over j < i of w_j (m_i - m_j)
    return (2 * w * before + w.square() * (end - begin) / 3).sum()
