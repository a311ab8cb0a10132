"""Tells errors that say that memory ran out from others."""

import cv2
import torch


def memory_that_ran_out(error):
    """'the GPU' or 'this machine' where an exception says that its memory ran out, else None. On a CPU torch has no class of its own for it."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU"
    in_opencv = isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem
    in_torch = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return "this machine" if isinstance(error, MemoryError) or in_opencv or in_torch else None
