"""Adam with a loss scale, half copies and zeroing in one pass, which leaves alone what has no gradient; a CPU and a CUDA form."""

from .ops import step_
from .optimizer import FusedAdam

__all__ = ["FusedAdam", "step_"]
