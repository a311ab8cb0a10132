"""The time that training takes: evaluation, checkpoints and pictures do not count."""

import contextlib
import time

import torch


class TrainingClock:
    """Seconds spent training, over all runs of a workspace."""

    def __init__(self, device, seconds=0.0):
        self.device, self._before, self._since = device, seconds, None

    @property
    def seconds(self):
        """Seconds so far; work that was sent to the device but is not done yet counts when it is done."""
        return self._before + (time.perf_counter() - self._since if self._since is not None else 0.0)

    @contextlib.contextmanager
    def running(self):
        """Counts while this holds."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._stop()

    @contextlib.contextmanager
    def paused(self):
        """Does not count while this holds; waits for the device first, so that its work counts as training."""
        self._stop()
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def _stop(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._before, self._since = self.seconds, None
