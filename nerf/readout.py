"""Numbers from the device without waiting for them, unless the host has run far ahead."""

from collections import deque

import torch

AHEAD = 2  # copies that may be under way: the device never runs dry meanwhile, and what the host decides by is never older


class Readout:
    """Copies small tensors to the host in the background; `latest` gives the newest that has arrived."""

    def __init__(self):
        self._pending = deque()
        self._latest = None

    def push(self, step, values):
        """Sends values [k] on their way, labelled with the step; first waits until fewer than AHEAD others are under way."""
        if values.device.type == "cpu":
            self._latest = (step, values.tolist())
            return
        while len(self._pending) >= AHEAD:
            self._pending[0][2].synchronize()
            self.latest()
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._pending.append((step, host, arrived))

    def latest(self):
        """(step, list of k numbers) of the newest values on the host, or None before the first."""
        while self._pending and self._pending[0][2].query():
            step, host, _ = self._pending.popleft()
            self._latest = (step, host.tolist())
        return self._latest

    def wait(self):
        """Like `latest`, once everything pushed has arrived."""
        if self._pending:
            self._pending[-1][2].synchronize()
        return self.latest()
