"""What is learned. A field maps samples to raw outputs, before any activation: `field(samples) -> raw [M, C]`, `field.density(positions) -> logit [M]`."""

from nerf.fields.ngp import NGPField

__all__ = ["NGPField"]
