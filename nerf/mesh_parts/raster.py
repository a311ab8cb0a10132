"""A z-buffer in plain PyTorch: which triangle each pixel sees first, and where on it. It needs no display, on any device."""

from typing import NamedTuple

import torch

NEAREST = 1e-3  # depth before which a triangle is not drawn; one that reaches behind the camera is left out whole
AT_ONCE = {"cuda": 2**23, "cpu": 2**21}  # candidate pixels held in memory together


class Pinhole(NamedTuple):
    """pose [3, 4] float32, camera to world, OpenGL axes; window: least x, y and greatest x, y of what is seen, as slopes: x right, y up, at
    depth 1; width, height in pixels."""

    pose: torch.Tensor
    window: tuple
    width: int
    height: int

    def project(self, points):
        """World points [V, 3] -> pixel coordinates x, y [V] (y down, pixel centres at +0.5) and depth [V] along the axis."""
        local = (points - self.pose[:, 3]) @ self.pose[:, :3]
        depth = -local[:, 2]
        slope = local[:, :2] / depth.clamp(min=NEAREST)[:, None]
        left, low, right, high = self.window
        return (slope[:, 0] - left) * (self.width / (right - left)), (high - slope[:, 1]) * (self.height / (high - low)), depth


class Buffer(NamedTuple):
    """face [H W] int64, the triangle that each pixel sees, -1: none; closeness [H W] float32, 1 / depth there, 0: none."""

    face: torch.Tensor
    closeness: torch.Tensor


def rasterise(points, faces, width, height, one_sided=False):
    """Which triangles the pixels of a picture show.

    Args:
        points: (x, y, depth) [V] each, as of Pinhole.project; faces: [T, 3] int64, fewer than 2^31; width, height in pixels.
        one_sided: leave out triangles whose back is seen.
    Returns:
        Buffer.
    """
    device = faces.device
    key = torch.full((width * height,), -1, dtype=torch.int64, device=device)
    x, y, depth = (column[faces] for column in points)
    low_x, high_x = _pixels(x, width)
    low_y, high_y = _pixels(y, height)
    area = _cross(x[:, 1] - x[:, 0], y[:, 1] - y[:, 0], x[:, 2] - x[:, 0], y[:, 2] - y[:, 0])
    drawn = (high_x >= low_x) & (high_y >= low_y) & (depth.amin(dim=1) > NEAREST) & ((area < 0) if one_sided else (area != 0))
    chosen = drawn.nonzero()[:, 0]
    wide, tall = ((high - low + 1)[chosen] for low, high in ((low_x, high_x), (low_y, high_y)))
    running = (wide * tall).cumsum(0)
    first, limit = 0, AT_ONCE[device.type]
    while first < len(chosen):
        before = running[first - 1] if first else 0
        last = max(first + 1, int(torch.searchsorted(running, before + limit)))
        part, w = chosen[first:last], wide[first:last]
        count = w * tall[first:last]
        row = torch.repeat_interleave(torch.arange(len(part), device=device), count)
        place = torch.arange(len(row), device=device) - (count.cumsum(0) - count)[row]
        face = part[row]
        px, py = low_x[face] + place % w[row], low_y[face] + place // w[row]
        weight = _weights(px + 0.5, py + 0.5, x[face], y[face], area[face])
        closeness, inside = (weight / depth[face]).sum(dim=-1).clamp(min=1e-30), (weight >= 0).all(dim=-1)
        entry = (closeness[inside].view(torch.int32).long() << 32) | face[inside]  # positive floats order as their bits do
        key.scatter_reduce_(0, (py * width + px)[inside], entry, "amax")
        first = last
    empty = key < 0
    return Buffer(torch.where(empty, -1, key & 0xFFFFFFFF), torch.where(empty, 0, key >> 32).int().view(torch.float32))


def corner_weights(points, faces, buffer, pixels, width):
    """How much of each corner of its triangle a pixel shows, seen in perspective.

    Args:
        points, faces, width: as of rasterise, which made the buffer; pixels: [K] int64, row by row, none of them empty.
    Returns:
        [K, 3] float32, rows that add up to 1.
    """
    x, y, depth = (column[faces[buffer.face[pixels]]] for column in points)
    area = _cross(x[:, 1] - x[:, 0], y[:, 1] - y[:, 0], x[:, 2] - x[:, 0], y[:, 2] - y[:, 0])
    weight = _weights(pixels % width + 0.5, pixels // width + 0.5, x, y, area) / depth
    return weight / weight.sum(dim=-1, keepdim=True)


def interpolated(values, corners, weight):
    """values [V, C] between the corners [K, 3] int64 of triangles, by their weight [K, 3]: [K, C]."""
    return (values[corners] * weight[..., None]).sum(dim=1)


def _pixels(coordinate, count):
    """First and last pixel [T] whose centre a triangle's extent [T, 3] holds, of `count`."""
    low = (coordinate.amin(dim=1) - 0.5).ceil().clamp(0, count)
    high = (coordinate.amax(dim=1) - 0.5).floor().clamp(-1, count - 1)
    return low.long(), high.long()


def _weights(px, py, x, y, area):
    """Barycentric weights [K, 3] of points [K] in flat triangles [K, 3]."""
    pairs = ((1, 2), (2, 0), (0, 1))
    return torch.stack([_cross(x[:, j] - x[:, i], y[:, j] - y[:, i], px - x[:, i], py - y[:, i]) / area for i, j in pairs], dim=-1)


def _cross(ax, ay, bx, by):
    return ax * by - ay * bx
