"""From raw field outputs to pixels: activations and compositing, in float32, in one place.

raw [M, C]: column 0 is the logarithm of density (1 / world unit), the others are the logits of what is composited (colour, C - 1 = 3).
Compositing is the usual quadrature of volume rendering (Max 1995; Mildenhall et al. 2020, eq. 3):
    alpha_i = 1 - exp(-density_i dt_i),  T_i = prod_{j<i} (1 - alpha_j),  w_i = T_i alpha_i,  C(r) = sum_i w_i c_i.
"""

from typing import NamedTuple

import torch

import raymarching
from nerf import losses

LOGIT_LIMIT = 15.0  # the gradient of exp is taken at most this far out: beyond, float32 sums overflow (Mueller et al. 2022 do the same)


class Composited(NamedTuple):
    """features [N, K], opacity [N] = sum w, depth [N] = sum w t (world units, not divided by opacity), weights [M]; all float32."""

    features: torch.Tensor
    opacity: torch.Tensor
    depth: torch.Tensor
    weights: torch.Tensor


class _TruncatedExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).exp()


def density(logit):
    """Density from its logarithm: exp in float32, unclamped, with a gradient that cannot overflow. [M] any float -> [M] float32."""
    return _TruncatedExp.apply(logit.float())


def activate(raw):
    """raw [M, C] -> (density [M], features [M, C - 1] in [0, 1]), float32."""
    return density(raw[:, 0]), torch.sigmoid(raw[:, 1:].float())


def composite(raw, samples, packing, T_thresh):
    """Composites raw outputs along their rays; differentiable with respect to `raw`.

    Args:
        raw: [M, C], any float type.
        samples: Samples; packing: Packing.
        T_thresh: a ray stops where its transmittance falls below this.
    Returns:
        Composited; a ray without samples is all zeros.
    """
    sigma, features = activate(raw)
    return Composited(*raymarching.composite_rays_train(sigma, features, samples.t, samples.dt, packing.rays, T_thresh))


class LossTerms(NamedTuple):
    """What a loss is made of beside the pixels. entropy: weight of the mean entropy of the rays' opacity, in bits; distortion: weight of the mean distortion of
    their weights; near_scale: nearer to the camera than this (world units), gradients shrink with the square of distance."""

    entropy: float = 0.0
    distortion: float = 0.0
    near_scale: float = 0.0


class PixelGradient(NamedTuple):
    """told [2] float32 = (loss, squared error alone), means over the rays kept; delta [M, C] float32, the loss's gradient at raw; weights [M] float32, or
    None where nobody wants them."""

    told: torch.Tensor
    delta: torch.Tensor
    weights: torch.Tensor | None = None


def pixel_gradient(raw, placed, target, background, T_thresh, terms, want_weights=False):
    """The pixel loss and its gradient at raw outputs of four columns, in one pass and by formula: `composite`, then nerf.losses.

    Args:
        raw: [M, 4], any float type; placed: nerf.sampling.Placed; T_thresh: as in `composite`.
        target: [N, 3 or 4] in [0, 1]: what the photos show; a fourth column is their opacity, through which the background is seen.
        background: [N, 3]: what lies behind the field.
        terms: LossTerms; want_weights: whether the weights are wanted, which costs a little.
    """
    samples, packing = placed.samples, placed.packing
    delta, told, *weights = raymarching.composite_loss(
        raw, samples.dt, packing.rays, packing.counts, target, background, T_thresh, terms.entropy, spacing=placed.spacing,
        distortion_weight=terms.distortion, t=samples.t, near_scale=terms.near_scale, want_weights=want_weights,
    )  # fmt: skip
    return PixelGradient(told, delta, *weights)


def shaded_pixel_gradient(raw, placed, target, background, T_thresh, terms, shade, scale):
    """`pixel_gradient` of a field whose composited features become colours in `shade`, a network that runs once a ray.

    That network learns here: its parameters' gradients, times the loss scale, are accumulated.

    Args:
        raw: [M, C]; the others as in `pixel_gradient`.
        shade: (features [N, C - 1], opacity [N]) -> colours [N, 3] without a background.
        scale: tensor -> tensor, the loss scale.
    """
    samples, packing = placed.samples, placed.packing
    kept = packing.kept()
    if target.shape[1] == 4:
        target = target[:, :3] * target[:, 3:] + background * (1 - target[:, 3:])
    leaf = raw.detach().float().requires_grad_()
    with torch.enable_grad():
        seen = composite(leaf, samples, packing, T_thresh)
        pixels = losses.pixel_loss(shade(seen.features, seen.opacity) + (1 - seen.opacity)[:, None] * background, target, kept)
        total = pixels
        if terms.entropy:
            total = total + terms.entropy * losses.opacity_entropy(seen.opacity, kept)
        if terms.distortion:
            total = total + terms.distortion * losses.distortion(seen.weights, placed.spacing, samples.ray_index, kept)
        scale(total).backward()
    delta = leaf.grad / scale(torch.ones_like(total))
    if terms.near_scale:
        delta = delta * (samples.t / terms.near_scale).square().clamp(max=1)[:, None]
    return PixelGradient(torch.stack([total.detach(), pixels.detach()]), delta, seen.weights.detach())
