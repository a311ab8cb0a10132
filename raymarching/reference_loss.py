"""The loss of composited pixels in plain PyTorch: what the kernel is tested against, and the fallback where nothing can be compiled.

Same name, arguments and results as the raw operator (see loss.py).
"""

import torch

from .reference import composite_rays_train_backward, composite_rays_train_forward

LOGIT_LIMIT = 15.0
ENTROPY_MARGIN = 1e-5


def composite_loss(raw, dt, rays, counts, target, background, T_thresh, entropy_weight):
    raw = raw.to(dt.dtype)
    used, kept = counts[0].clamp(0, len(raw)), counts[1].clamp(0, len(rays))
    in_use = torch.arange(len(rays), device=rays.device) < kept
    rays = torch.where((in_use & (rays.long().sum(1) <= used))[:, None], rays, 0)
    medium = raw[:, 0].exp(), raw[:, 1:].sigmoid(), torch.zeros_like(dt), dt, rays
    features, opacity, _, _ = composite_rays_train_forward(*medium, T_thresh)
    with torch.enable_grad():
        seen = features.detach().requires_grad_(), opacity.detach().requires_grad_()
        loss, squared_error = pixel_losses(*seen, target, background, in_use, entropy_weight)
    at_features, at_opacity = torch.autograd.grad(loss, seen)
    at_density, at_colours = composite_rays_train_backward(at_features, at_opacity, None, None, *medium, T_thresh)
    slope = raw[:, 0].clamp(-LOGIT_LIMIT, LOGIT_LIMIT).exp()
    delta = torch.cat([(at_density * slope)[:, None], at_colours * medium[1] * (1 - medium[1])], 1)
    return delta, torch.stack([loss, squared_error]).detach()


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
