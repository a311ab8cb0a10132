"""Choosing the hard samples of a training step and gathering their rows, with a CPU and a CUDA form."""

from .ops import take_rows, thin_samples

__all__ = ["take_rows", "thin_samples"]
