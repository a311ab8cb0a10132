"""A run's state as it last was in good order, kept in host memory: what training goes back to, and what files are written from while it goes on."""

from concurrent.futures import ThreadPoolExecutor

import torch


class Snapshot:
    """A copy of a state (tensors, plain values; lists, tuples and dicts of them).

    Each copy goes into the memory of the one before, page-locked where the tensors are on a GPU: most of the time that a copy takes is for getting new memory.
    One thread writes files of it; a copy waits until they are written.
    """

    def __init__(self):
        self.state = None
        self._writer, self._writing = ThreadPoolExecutor(1), []

    @property
    def busy(self):
        """Whether a file is being written, so that `take` would wait."""
        return any(not write.done() for write in self._writing)

    def take(self, state):
        """Copies `state`. Raises what `settle` raises."""
        self.settle()
        self.state = _copied(state, self.state)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def write(self, save, *arguments):
        """Calls save(*arguments, state) in the background, after the writes that were asked for before."""
        self._writing.append(self._writer.submit(save, *arguments, self.state))

    def settle(self):
        """Waits until all is written. Raises what the first write that failed has raised."""
        writing, self._writing = self._writing, []
        for write in writing:
            write.result()


def _copied(value, room):
    """A copy of `value` on the host, in the tensors of `room`, the copy before it, where they fit. Those of a GPU are there once it is synchronised."""
    if isinstance(value, torch.Tensor):
        fits = isinstance(room, torch.Tensor) and room.shape == value.shape and room.dtype == value.dtype
        return (room if fits else _host_tensor(value)).copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        before = room if isinstance(room, dict) else {}
        return {key: _copied(entry, before.get(key)) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        before = room if isinstance(room, (list, tuple)) and len(room) == len(value) else [None] * len(value)
        return type(value)(_copied(entry, old) for entry, old in zip(value, before, strict=True))
    return value


def _host_tensor(like):
    """Memory for a copy; page-locked, so that the GPU itself writes there, as long as the system lends such memory."""
    try:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)
    except RuntimeError:
        return torch.empty(like.shape, dtype=like.dtype)
