"""Frequency encoding of positions and directions with a CPU and a CUDA form."""

from .encoder import FreqEncoder
from .ops import freq_encode, freq_encode_backward, freq_encode_forward

__all__ = ["FreqEncoder", "freq_encode", "freq_encode_backward", "freq_encode_forward"]
