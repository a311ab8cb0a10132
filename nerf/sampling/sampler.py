"""What every way of placing samples along rays has in common."""

from typing import NamedTuple

from torch import nn

from nerf.samples import Packing, Samples


class Placed(NamedTuple):
    """The samples of a step. proposals: what the sampler needs to learn from them, if it learns."""

    samples: Samples
    packing: Packing
    proposals: tuple = ()


class Sampler(nn.Module):
    """Decides where along a ray the field is asked. Its state, and what it learns, are those of the module.

    Attributes:
        capacity: M, rows of the samples that it places.
        noises: random numbers that it takes for each ray.
    """

    capacity: int
    noises: int

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
