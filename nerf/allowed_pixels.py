"""Drawing of allowed pixels: where photos have masks, a masked pixel must never become a ray."""

import numpy as np
import torch

FINE = 2.0**-24  # the spacing of float32 random numbers below 1


class AllowedPixels:
    """The allowed pixels of the photos that are drawn from, on the device; what it computes has fixed shapes and reads nothing back.

    Args:
        masks: nerf.scene.masks.Masks of all photos; sizes: [n, 2] integers, width and height of each;
        indices: [k] integers, the photos to draw from.
    """

    def __init__(self, masks, sizes, indices, device):
        runs = [slice(masks.first[i], masks.first[i + 1]) for i in indices]
        lengths = np.concatenate([masks.lengths[run] for run in runs])
        ends = np.cumsum(lengths)  # of each run, in the row of all allowed pixels
        counts = np.array([masks.lengths[run].sum() for run in runs])
        arrays = np.concatenate([masks.starts[run] for run in runs]) - (ends - lengths), ends, counts, np.cumsum(counts) - counts
        self.shift, self.ends, self.counts, self.before = (torch.from_numpy(array.astype(np.int64)).to(device) for array in arrays)
        self.sizes = torch.from_numpy(np.asarray(sizes)[indices].astype(np.int64)).to(device)

    def pixels(self, photo, random):
        """A random allowed pixel of each of some photos, all of a photo alike.

        photo: [N] int64 in [0, k), random: [N, 2] float32 in [0, 1) -> [N, 2] int64 = x, y.
        """
        chance = random[:, 0].double() + FINE * random[:, 1].double()  # float32 alone is too coarse for the pixels of a large photo
        counts = self.counts[photo]
        place = self.before[photo] + torch.minimum((chance * counts).long(), counts - 1)
        pixel = self.at(place)
        width = self.sizes[photo, 0]
        return torch.stack([pixel % width, pixel // width], dim=1)

    def at(self, place):
        """The pixel's number in its photo, of places [N] int64 in the row of all allowed pixels, photo after photo."""
        return place + self.shift[torch.searchsorted(self.ends, place, right=True)]

    def aim(self, random, mixed):
        """Random numbers by which raymarching.draw_rays lands on allowed pixels alone.

        random: [N, 3] float32 in [0, 1), for photo and pixel -> [N, 3] float32; mixed: each ray draws its own photo, else the first for all.
        """
        chance = random[:, 0] if mixed else random[:1, 0].expand(len(random))
        photo = (chance * len(self.counts)).long().clamp(max=len(self.counts) - 1)
        cell = torch.cat([photo[:, None], self.pixels(photo, random[:, 1:])], dim=1) + 0.5  # the middle, so that rounding moves none
        cells = torch.cat([torch.full_like(photo[:, None], len(self.counts)), self.sizes[photo]], dim=1)
        return cell / cells
