"""Losses, one function each. Means run over the rays that are in use."""

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
