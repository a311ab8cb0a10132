"""Photos that do not fit the device: it holds a pool of runs of their pixels, in which a thread of the host replaces a few before each step.

A step draws from all runs of the pool, so it sees thousands of places in hundreds of photos; a run is replaced after about a thousand steps, by then few
of its pixels have been drawn. So little is moved, in large pieces and long before it is drawn, that neither the disk nor the bus is waited for.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from nerf.allowed_pixels import AllowedPixels

RUN = 2**14  # most pixels of a run: 48 KiB, from which on disks read at full speed
GROUP = 4  # runs replaced in a step; at 1 ms a step, 200 MB/s
GROUPS = 1024  # of the pool, 192 MiB in all
AHEAD = 16  # groups that are prepared before they are due


class PhotoPool:
    """Runs of pixels of photos, on a device. What it holds at a step follows from seed and step alone, whatever happened before.

    Args:
        photos: nerf.scene.photos.Photos or PhotosOnDisk; indices: [k] int64, those to draw from; sizes: [n, 2] width and height of all.
        mixed: each run is of a photo of its own and a step draws from all; else a step draws from its own group, which is of one photo.
        masks: nerf.scene.masks.Masks of all photos, or None; where there are some, "pixels" means the allowed ones throughout.
        device: torch.device.
    """

    def __init__(self, photos, indices, sizes, mixed, masks, device):
        self.photos, self.indices, self.mixed = photos, np.asarray(indices, dtype=np.int64), mixed
        own = sizes[self.indices].astype(np.int64)
        self.widths, self.pixel_counts, self.before = own[:, 0], own.prod(axis=1), np.zeros(len(own), dtype=np.int64)
        self.allowed = masks and AllowedPixels(masks, sizes, self.indices, device)
        if masks:
            self.allowed_here = AllowedPixels(masks, sizes, self.indices, torch.device("cpu"))
            self.pixel_counts, self.before = self.allowed_here.counts.numpy(), self.allowed_here.before.numpy()
        self.run = int(min(RUN, self.pixel_counts.max()))
        self.pixels = torch.zeros((GROUPS, GROUP * self.run, photos.channels), dtype=torch.uint8, device=device)
        self.table = torch.zeros((GROUPS, GROUP, 4), dtype=torch.int64, device=device)  # of each run: photo, first pixel or place, pixels, width of the photo
        self.group = torch.zeros(1, dtype=torch.int64, device=device)  # the newest
        self.thread = ThreadPoolExecutor(1, "photos")
        self.buffers = [_Buffer(GROUP * self.run, photos.channels, device) for _ in range(AHEAD)]
        self.pending, self.due, self.number = deque(), None, 0

    def follow(self, seed, step):
        """Brings the pool to the state of a step: a group a step, or all groups where this is not the step after the last one.

        Raises:
            UserError: the photos cannot be read.
        """
        if (seed, step) != self.due:
            self._begin(seed, step)
            for _ in range(GROUPS - 1):
                self._take(seed)
        self._take(seed)
        self.due = seed, step + 1

    def _begin(self, seed, step):
        """Discards what was prepared, and prepares the first of the groups that the pool holds at a step."""
        self.due = None
        for prepared in self.pending:
            prepared.exception()
        self.pending.clear()
        self.number = step  # group `number` belongs to step number - GROUPS + 1, so that none is negative
        for i, buffer in enumerate(self.buffers):
            self.pending.append(self.thread.submit(self._prepare, buffer, seed, self.number + i))

    def _take(self, seed):
        """Sends the next group to the device, and has the one that is due AHEAD groups later prepared in its buffer."""
        buffer, group = self.pending.popleft().result(), self.number % GROUPS
        buffer.send(self.pixels[group], self.table[group])
        if not self.mixed:
            self.group.fill_(group)
        self.pending.append(self.thread.submit(self._prepare, buffer, seed, self.number + AHEAD))
        self.number += 1

    def _prepare(self, buffer, seed, number):
        """Fills a buffer with group `number`: photos uniformly, then pixels uniformly; a run is the one that holds that pixel."""
        random = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, number], dtype=np.uint64)))
        photo = np.broadcast_to(random.integers(len(self.indices), size=GROUP if self.mixed else 1), GROUP)
        first = (random.random(GROUP) * self.pixel_counts[photo]).astype(np.int64) // self.run * self.run
        count = np.minimum(self.run, self.pixel_counts[photo] - first)
        first += self.before[photo]
        buffer.wait()
        buffer.table[:] = np.stack([self.indices[photo], first, count, self.widths[photo]], axis=1)
        starts = self.photos.offsets[self.indices[photo]]
        for i in range(GROUP):
            self._read(int(starts[i]), int(first[i]), buffer.pixels[i * self.run : i * self.run + count[i]])
        return buffer

    def _read(self, start, first, out):
        """Fills `out` with pixels of the photo whose first row is `start`: those from number `first` on, or, with masks, from place `first` on."""
        if not self.allowed:
            self.photos.read(start + first, out)
            return
        numbers = self.allowed_here.at(torch.arange(first, first + len(out))).numpy()
        span = np.empty((numbers[-1] + 1 - numbers[0], out.shape[1]), dtype=np.uint8)
        self.photos.read(start + int(numbers[0]), span)
        out[:] = span[numbers - numbers[0]]

    def draw(self, random):
        """Random pixels of the photos, every one of them as probable as if all were there.

        Args:
            random: [N, 3] float32 in [0, 1) on the device.
        Returns:
            photo [N] int64, pixel centres [N, 2] float32 (x, y), colours [N, C] uint8.
        """
        if self.mixed:
            run = (random[:, 0] * (GROUPS * GROUP)).long()
        else:
            run = self.group * GROUP + (random[:, 0] * GROUP).long()
        photo, first, count, width = self.table.view(-1, 4).index_select(0, run).unbind(1)
        inside = (random[:, 1] * count).long()
        pixel = self.allowed.at(first + inside) if self.allowed else first + inside
        xy = torch.stack([pixel % width, pixel // width], dim=1) + 0.5
        return photo, xy, self.pixels.view(-1, self.pixels.shape[-1]).index_select(0, run * self.run + inside)


class _Buffer:
    """A group in host memory on its way to the device; pinned, so that nobody waits for the copy."""

    def __init__(self, pixels, channels, device):
        on_gpu = device.type == "cuda"
        self.sources = [torch.zeros(shape, dtype=dtype, pin_memory=on_gpu) for shape, dtype in (((pixels, channels), torch.uint8), ((GROUP, 4), torch.int64))]
        self.pixels, self.table = (source.numpy() for source in self.sources)
        self.sent = torch.cuda.Event(blocking=True) if on_gpu else None

    def send(self, *targets):
        """Copies pixels and table to the device, after the steps that were sent there before."""
        for target, source in zip(targets, self.sources, strict=True):
            target.copy_(source, non_blocking=True)
        if self.sent:
            self.sent.record()

    def wait(self):
        """Until the device has read the buffer, in the thread that fills it anew."""
        if self.sent:
            self.sent.synchronize()
