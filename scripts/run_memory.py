"""Device memory of one training run where several live in one process."""

import gc

import torch


class RunMemory:
    """Measures, turn by turn, the most device memory that one run needs; made just before the run is.

    torch counts for the whole process. What the others hold does not change while one run has its turn, so it is found at the turn's
    start, as what is allocated less what this run holds, and subtracted. A run holds what its making allocated, and what its earlier
    turns left allocated.

    To what is allocated comes the memory of recorded steps: it stays reserved between replays, without being allocated (Replay.memory).
    But while a step is being recorded its memory is allocated too, and would count twice. So a turn is cut into pieces where recordings
    are made or dropped, and the most allocated in each piece is added to what recorded steps held at its start. A recording allocates no
    more than the same step did just before, when it ran unrecorded, so the peak of its piece is right, too. A turn's peak is the greatest
    of its pieces. The first turn mostly needs the most: steps run unrecorded there beside others that are recorded already.

    Args:
        device: torch.device; on anything but a CUDA device nothing is measured.
    """

    def __init__(self, device):
        self.device, self.enabled = device, device.type == "cuda"
        self._before = self._allocated()

    def watch(self, replay):
        """Takes the run's nerf.replay.Replay, once the run is made."""
        self.replay, self.graphs, self.recorded, self.peak = replay, len(replay.graphs), 0, 0
        self.held = self._allocated() - self._before

    def start(self):
        """Begins a turn."""
        if self.enabled:
            self._before = self._allocated()
            self.others = self._before - self.held
            self.peak = 0
            torch.cuda.reset_peak_memory_stats(self.device)

    def stale(self):
        """Whether recordings were made or dropped since the last look: time to `take`."""
        return self.enabled and len(self.replay.graphs) != self.graphs

    def take(self):
        """Ends a piece of the turn. Slow (milliseconds): not for the time that is measured."""
        self.peak = max(self.peak, torch.cuda.max_memory_allocated(self.device) - self.others + self.recorded)
        self.graphs, self.recorded = len(self.replay.graphs), self.replay.memory()
        torch.cuda.reset_peak_memory_stats(self.device)

    def stop(self):
        """Ends a turn; MiB of its peak, None where nothing is measured."""
        if not self.enabled:
            return None
        self.take()
        self.peak = max(self.peak, torch.cuda.memory_allocated(self.device) - self.others + self.recorded)
        self.held += self._allocated() - self._before
        return self.peak / 2**20

    def _allocated(self):
        """Bytes that are allocated and not garbage."""
        if not self.enabled:
            return 0
        gc.collect()
        torch.cuda.synchronize(self.device)
        return torch.cuda.memory_allocated(self.device)
