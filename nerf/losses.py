"""Losses, one function each. Means run over the rays that are in use.

Those of weights take packed samples (see samples.py): M rows in ray order, `ray_index` [M] int32 the ray of each, -1 for padding, which
is not read. A row's interval in normalised spacing is spacing [M, 2] = (begin, end), within [0, 1] and ascending
along a ray. Sums that run over all rows are float64, so that a ray's part of them keeps its digits.
"""

import torch


def ray_mean(values, kept):
    """Mean of values [N] over the rays kept [N] bool; 0 where none is."""
    return torch.where(kept, values, 0.0).sum() / kept.sum().clamp(min=1)


def pixel_loss(colour, target, kept):
    """Mean squared error of the pixel colours: colour, target [N, 3], kept [N] bool -> []."""
    return ray_mean((colour - target).square().mean(dim=-1), kept)


def opacity_entropy(opacity, kept, margin=1e-5):
    """Binary entropy, in bits, of each ray's opacity [N]: pulls rays to be either empty or opaque.

    The margin keeps the logarithm finite at opacities 0 and 1, where the entropy is 0 anyway.
    """
    p = opacity.clamp(margin, 1 - margin)
    return ray_mean(-(p * p.log2() + (1 - p) * (1 - p).log2()), kept)


def distortion(weights, spacing, ray_index, kept):
    """How far the weights of a ray lie apart (Barron et al. 2022, mip-NeRF 360, arXiv 2111.12077, equation 15).

    The mean over the rays of sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 (end_i - begin_i), m the middle of an interval. Pulls the weights
    into one place: fewer floaters. As the middles ascend, the double sum is 2 sum_i w_i (m_i sum_{j<i} w_j - sum_{j<i} w_j m_j).

    Args:
        weights [M], spacing [M, 2], ray_index [M] int32, kept [N] bool. Differentiable with respect to weights and spacing.
    Returns:
        [], in the dtype of weights.
    """
    ray, used = _rows_in_use(ray_index, kept)
    w = torch.where(used, weights, 0).double()
    begin, end = torch.where(used[:, None], spacing, 0).double().unbind(1)
    middle = (begin + end) / 2
    before = middle * _sum_before(w, ray) - _sum_before(w * middle, ray)
    return ((2 * w * before + w.square() * (end - begin) / 3).sum() / kept.sum().clamp(min=1)).to(weights.dtype)


def interlevel(weights, spacing, ray_index, proposal_weights, proposal_spacing, proposal_ray_index, kept, margin=1e-7):
    """How far the weights of a ray exceed what its proposal allows (Barron et al. 2022, mip-NeRF 360, arXiv 2111.12077, equations 12, 13).

    The mean over the rays of sum_i max(0, w_i - bound_i)^2 / (w_i + margin), where bound_i sums the proposal's weights over the intervals
    that share more than a point with interval i. Teaches the proposal alone: weights are constant here.

    Args:
        weights [M], spacing [M, 2], ray_index [M] int32: of the samples that the field saw.
        proposal_weights [P], proposal_spacing [P, 2], proposal_ray_index [P] int32: of the same rays, from the proposal network.
        kept: [N] bool.
        margin: keeps the quotient finite where a weight is 0.
    Returns:
        [], in the dtype of proposal_weights, differentiable with respect to them.
    """
    ray, used = _rows_in_use(ray_index, kept)
    proposal_ray, proposal_used = _rows_in_use(proposal_ray_index, kept)
    w = torch.where(used, weights.detach(), 0).double()
    from_start = torch.where(proposal_used, proposal_weights, 0).double().cumsum(0)
    from_start = torch.cat([from_start.new_zeros(1), from_start])
    begin, end = _along_all_rays(spacing, ray, used)
    proposal_begin, proposal_end = _along_all_rays(proposal_spacing, proposal_ray, proposal_used)
    first = torch.searchsorted(proposal_end, begin, right=True)  # proposal intervals that end at or before this one begins
    last = torch.searchsorted(proposal_begin, end)  # and those that begin before it ends
    bound = from_start[torch.maximum(first, last)] - from_start[first]
    loss = torch.where(used, (w - bound).clamp(min=0).square() / (w + margin), 0)
    return (loss.sum() / kept.sum().clamp(min=1)).to(proposal_weights.dtype)


def _rows_in_use(ray_index, kept):
    """(ray [M] int64, 0 for rows that do not count; whether a row counts [M] bool)."""
    ray = ray_index.long().clamp(min=0)
    used = (ray_index >= 0) & kept[ray] if len(kept) else torch.zeros_like(ray, dtype=torch.bool)
    return torch.where(used, ray, 0), used


def _sum_before(values, ray):
    """The sum of the values before each row in its own ray, [M]; ray [M] ascends but for rows whose values are 0."""
    before = values.cumsum(0) - values
    row = torch.arange(len(ray), device=ray.device)
    starts = torch.cat([torch.ones_like(ray[:1], dtype=torch.bool), ray[1:] != ray[:-1]])
    return before - before[torch.where(starts, row, 0).cummax(0).values]


def _along_all_rays(spacing, ray, used):
    """Begins and ends [M] float64, ascending, on one line where ray r has [2 r, 2 r + 1]; rows that do not count repeat the one before."""
    return torch.where(used[:, None], spacing.detach().double() + 2 * ray[:, None], 0).cummax(0).values.T.contiguous()
