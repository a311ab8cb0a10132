"""Spherical-harmonics encoding of directions with a CPU and a CUDA form."""

from .encoder import SHEncoder
from .ops import sh_encode, sh_encode_backward, sh_encode_forward

__all__ = ["SHEncoder", "sh_encode", "sh_encode_backward", "sh_encode_forward"]
