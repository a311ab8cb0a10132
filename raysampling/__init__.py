"""Where along rays to look, by proposals, with a CPU and a CUDA form. See README.md beside this file."""

from .ops import interlevel_loss, place_samples, resample

__all__ = ["interlevel_loss", "place_samples", "resample"]
