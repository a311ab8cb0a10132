"""The loss of composited pixels and its gradient at the raw field outputs, in one pass over the samples."""

import torch

from . import ops, reference, reference_loss
from .checks import check_at_least, check_tensors, check_threshold

kernels = reference_loss if ops.kernels is reference else ops.kernels


def composite_loss(
    raw, dt, rays, counts, target, background, T_thresh, entropy_weight=0.0, *,
    spacing=None, distortion_weight=0.0, t=None, near_scale=0.0, want_weights=False,
):  # fmt: skip
    """From raw field outputs to the gradient of the pixel loss at each of them; nothing is read by the host.

    With density exp(raw_0), colours sigmoid(raw_1..3) and weights w as in `composite_rays_train`, a ray of opacity o = sum w has the colour
    C = sum w c + (1 - o) background. With the means over the kept rays,
        loss = mean(|C - target|^2 / 3) + entropy_weight mean(H(o)) + distortion_weight mean(D),
        H(o) = -o log2(o) - (1 - o) log2(1 - o), o kept 1e-5 from 0 and 1,
        D = sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 (e_i - b_i)  (distortion; Barron et al. 2022, mip-NeRF 360, equation 15),
    where sample i covers (b_i, e_i) with the middle m_i in normalised spacing.
    The derivative of exp is taken at most at 15 and at least at -15, where float32 cannot overflow (Mueller et al. 2022 do the same). A ray
    stops behind the sample at which its transmittance falls below T_thresh; infinite density is opaque with gradient 0. Half is widened:
    all arithmetic is float32. Float64 throughout on the CPU also. Not differentiable: the gradient is the result.

    Args:
        raw: [M, 4] float32 or float16: the logarithm of density (1 / world unit) and three colour logits.
        dt: [M], length of each sample.
        rays: [N, 2] int32 = (first, count), the kept rays first, in order and without gaps, as `march_rays_train` gives them. A row that
            points outside the samples in use counts as empty. (On a GPU, delta is undefined where gaps leave a row in use to no ray.)
        counts: [3] int32 = (samples in use, rays kept, samples wanted).
        target: [N, 3], the colour to reach, in [0, 1]; or [N, 4], whose last column is alpha: then rgb alpha + background (1 - alpha).
        background: [N, 3], what shows behind the samples.
        T_thresh: transmittance at which a ray stops, in [0, 1].
        entropy_weight: of the opacity's entropy; at least 0.
        spacing: [M, 2], (b, e) of each sample, whose middles ascend along a ray. Needed with distortion_weight, otherwise not read.
        distortion_weight: of the distortion; finite and at least 0.
        t: [M], distance of each sample from its camera in world units. Needed with near_scale, otherwise not read.
        near_scale: in the units of t, finite and at least 0: delta is multiplied by min(1, (t / near_scale)^2), so that no density gathers
            right before the cameras, where samples are dense (Philip and Deschaintre 2023, "Floaters No More"). 0 = off.
        want_weights: give the weights as a third result.
    Returns:
        delta [M, 4] float32, the gradient of the loss at raw (times the factor of near_scale): 0 where a row is padding or behind the stop.
        A ray with a NaN spoils its own rows alone.
        numbers [2] float32 = (loss, mean squared error); both 0 where no ray is kept, NaN where a kept ray has a NaN. On a GPU their last
        digits depend on the order in which rays are added up; delta repeats to the bit. near_scale does not change them.
        weights [M] float32, only with want_weights: w, 0 where a row is padding or behind the stop.
    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape, device or value, by name.
    """
    dtype = raw.dtype if getattr(raw, "dtype", None) in (torch.float16, torch.float64) else torch.float32
    real = torch.float64 if dtype == torch.float64 else torch.float32
    check_tensors(raw=(raw, dtype, (None, 4)), rays=(rays, torch.int32, (None, 2)))
    check_tensors(
        raw=(raw, dtype, (None, 4)),
        dt=(dt, real, (len(raw),)),
        counts=(counts, torch.int32, (3,)),
        target=(target, real, (len(rays), None)),
        background=(background, real, (len(rays), 3)),
    )
    if target.shape[1] not in (3, 4):
        raise ValueError(f"target must have 3 columns, or 4 with alpha, got {target.shape[1]}")
    check_at_least(0, entropy_weight=entropy_weight)
    check_threshold(T_thresh)
    check_option("distortion_weight", distortion_weight, "spacing", spacing, dt, (len(raw), 2))
    check_option("near_scale", near_scale, "t", t, dt, (len(raw),))
    delta, numbers, weights = kernels.composite_loss(
        raw.detach(), dt, rays, counts, target, background, T_thresh, entropy_weight,
        spacing, distortion_weight, t, near_scale, want_weights,
    )  # fmt: skip
    return (delta, numbers, weights) if want_weights else (delta, numbers)


def check_option(name, number, needed, tensor, dt, shape):
    """Checks a number that is off at 0, and the tensor that it needs; None is fine where the number is 0."""
    check_at_least(0, **{name: number})
    if not number < float("inf"):
        raise ValueError(f"{name} must be finite, got {number}")
    if tensor is not None:
        check_tensors(dt=(dt, dt.dtype, (None,)), **{needed: (tensor, dt.dtype, shape)})
    elif number > 0:
        raise ValueError(f"{needed} is needed with {name} {number}: give it, or set {name} to 0")


def fake_composite_loss(
    raw, dt, rays, counts, target, background, T_thresh, entropy_weight, spacing, distortion_weight, t, near_scale, want_weights
):  # fmt: skip
    """Shapes of the results without running the operator, for torch.compile, export and torch.library.opcheck."""
    return dt.new_empty(raw.shape), dt.new_empty(2), dt.new_empty(len(raw) if want_weights else 0)


if kernels is not reference_loss:
    torch.library.register_fake("raymarching::composite_loss", fake_composite_loss)
