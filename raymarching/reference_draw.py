"""The drawing of training rays in plain PyTorch: the definition that the kernels are tested against, and the fallback without them."""

import math

import torch

from .reference import FLOAT_MAX, near_far_from_aabb
from .reference_lens import generate_rays


def draw_rays(random, count, pixels, offsets, sizes, images, mixed, poses, intrinsics, distortion, lens, near, far, aabb):
    chance = random[:, 0] if mixed else random[:1, 0].expand(len(random))
    photo = _cell(chance, torch.full_like(chance, len(images), dtype=torch.int64))
    image, size = images[photo], sizes[photo]
    place = _cell(random[:, 1:3], size)

    row = offsets[photo] + place[:, 1] * size[:, 0] + place[:, 0]
    found = (place < size).all(1) & (row >= 0) & (row < len(pixels))
    target = random.new_full((len(random), pixels.shape[1]), math.nan)
    target[found] = pixels[row[found]].float() / 255

    origins, directions = generate_rays(image, place + 0.5, poses, intrinsics, distortion, lens)
    first, last = near_far_from_aabb(origins, directions, aabb, 0.0)
    known = (image >= 0) & (image < len(poses))
    first[known] = torch.maximum(first[known], near[image[known]])
    last[known] = torch.minimum(last[known], far[image[known]])

    unused = torch.arange(len(random), device=random.device) >= count
    origins, directions, target = (rows.masked_fill(unused[:, None], 0) for rows in (origins, directions, target))
    first, last = first.masked_fill(unused, FLOAT_MAX), last.masked_fill(unused, FLOAT_MAX)
    return origins, directions, first, last, image.masked_fill(unused, 0), target


def adapt_ray_count(value, counts, capacity, samples, fill, growth):
    wanted = torch.full_like(counts[2:], fill * samples, dtype=torch.float64)
    ratio = (wanted / counts[2:].clamp(min=1)).clamp(1 / growth**4, growth)
    value.copy_((value * ratio).round().clamp(1, capacity))


def _cell(chance, cells):
    """The cell of [0, cells) that each number in [0, 1) falls in; NaN falls in the first."""
    place = (chance * cells).nan_to_num(0).clamp(0, 2.0**62).long()
    return torch.minimum(place, cells - 1).clamp(min=0)
