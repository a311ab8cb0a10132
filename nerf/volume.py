"""From raw field outputs to pixels: activations and compositing, in float32, in one place.

raw [M, C]: column 0 is the logarithm of density (1 / world unit), the others are the logits of what is composited (colour, C - 1 = 3).
Compositing is the usual quadrature of volume rendering (Max 1995; Mildenhall et al. 2020, eq. 3):
    alpha_i = 1 - exp(-density_i dt_i),  T_i = prod_{j<i} (1 - alpha_j),  w_i = T_i alpha_i,  C(r) = sum_i w_i c_i.
"""

from typing import NamedTuple

import torch

import raymarching

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


def pixel_loss_gradient(raw, samples, packing, target, background, T_thresh, entropy_weight=0.0):
    """The pixel loss and its gradient at the raw outputs in one pass: `composite`, then losses.pixel_loss and opacity_entropy, by formula.

    Args:
        raw: [M, 4], any float type; samples, packing, T_thresh: as in `composite`.
        target: [N, 3 or 4] in [0, 1]: what the photos show; a fourth column is their opacity, through which the background is seen.
        background: [N, 3]: what lies behind the field.
        entropy_weight: of the mean entropy of the rays' opacity, in bits.
    Returns:
        ([2] = (loss, squared error alone), means over the rays kept; gradient [M, 4] float32).
    """
    delta, told = raymarching.composite_loss(
        raw, samples.dt, packing.rays, packing.counts, target, background, T_thresh, entropy_weight
    )
    return told, delta
