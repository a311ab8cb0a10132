"""What every way of placing samples along rays has in common."""

from typing import NamedTuple

import torch
from torch import nn

from nerf.samples import Packing, Samples


class Placed(NamedTuple):
    """The samples of a step. proposals: what the sampler needs to learn from them, if it learns; spacing: [M, 2] float32, the interval of each sample in the
    normalised spacing in which distortion is measured, or None."""

    samples: Samples
    packing: Packing
    proposals: tuple = ()
    spacing: torch.Tensor | None = None


class Sampler(nn.Module):
    """Decides where along a ray the field is asked. Its state, and what it learns, are those of the module.

    Attributes:
        most_rays: N, the most rays of a step; capacity: M, rows of the samples that it places.
        adaptive: whether rays differ in how many samples they get, so that the number of rays is worth adapting.
        noises: random numbers that it takes for each ray.
    """

    most_rays: int
    capacity: int
    noises: int
    adaptive = False

    def place(self, rays, noise, learning=False):
        """Rays of N, noise [noises, N] float32 in [0, 1) -> Placed with M = capacity. `learning`: `learn` follows. Never waits for the device."""
        raise NotImplementedError

    def learns(self, step):
        """Whether the sampler's own networks learn in this step."""
        return False

    def learn(self, placed, weights, scale):
        """Accumulates gradients into the sampler's own networks.

        Args:
            placed: what `place` returned in this step; weights: [M] float32 of its samples, as the field composited them.
            scale: tensor -> tensor, multiplies what is back-propagated.
        """

    def before_step(self, step, density, generator, run):
        """What falls due before a step. density: positions [K, 3] -> density [K]; run: (name, work, variant) -> None, such as nerf.replay.Replay."""
