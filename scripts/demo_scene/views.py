"""Where the pictures are taken from, and through which lens."""

from dataclasses import dataclass

import numpy as np

from .patterns import hashed

LENSES = {"PINHOLE": (1, ()), "OPENCV": (4, (-0.09, 0.025, 0.0012, -0.0008))}  # COLMAP's number of the model; k1, k2, p1, p2


@dataclass
class Lens:
    model: str
    width: int
    height: int

    @property
    def focal(self):
        return 0.92 * self.width

    @property
    def parameters(self):
        """COLMAP's parameters in its order."""
        return (self.focal, self.focal, self.width / 2, self.height / 2, *LENSES[self.model][1])

    def distort(self, x, y):
        """Ideal image coordinates (x right, y down, at depth 1) to those of this lens, OpenCV's radial and tangential terms."""
        if self.model == "PINHOLE":
            return x, y
        k1, k2, p1, p2 = LENSES[self.model][1]
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * k2)
        return x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y

    def undistort(self, x, y):
        """The inverse of `distort`, by fixed-point steps (the lens is mild: 15 leave less than 1e-9)."""
        ideal_x, ideal_y = x, y
        for _ in range(15):
            bent_x, bent_y = self.distort(ideal_x, ideal_y)
            ideal_x, ideal_y = ideal_x + x - bent_x, ideal_y + y - bent_y
        return ideal_x, ideal_y


@dataclass
class View:
    """A camera. `rotation` [3, 3] turns world axes into the camera's (x right, y down, z forward, as in COLMAP)."""

    name: str
    centre: np.ndarray
    rotation: np.ndarray
    lens: Lens

    def rays(self, u, v):
        """Unit world directions [3, n] through pixel coordinates `u`, `v` [n] (the first pixel's centre is at 0.5)."""
        focal_x, focal_y, cx, cy = self.lens.parameters[:4]
        x, y = self.lens.undistort((u - cx) / focal_x, (v - cy) / focal_y)
        local = np.stack([x, y, np.ones_like(x)]) / np.sqrt(x * x + y * y + 1)
        # Sums written out: a matrix product may be summed in another order on another machine.
        return np.stack([sum(self.rotation[i, axis] * local[i] for i in range(3)) for axis in range(3)])

    def project(self, points):
        """Pixel coordinates `u`, `v` [n] of world points [3, n] and their depth [n] along the optical axis."""
        moved = points - self.centre[:, None]
        x, y, z = (sum(self.rotation[i, axis] * moved[axis] for axis in range(3)) for i in range(3))
        safe = np.where(z > 1e-6, z, 1e-6)
        x, y = self.lens.distort(x / safe, y / safe)
        focal_x, focal_y, cx, cy = self.lens.parameters[:4]
        return focal_x * x + cx, focal_y * y + cy, z


def looking_at(centre, target, roll):
    """Rotation [3, 3] of a camera at `centre` that looks at `target`, turned by `roll` radians about its axis."""
    forward = unit3(target - centre)
    right = unit3(np.cross(forward, [0.0, 0.0, 1.0]))
    down = np.cross(forward, right)
    c, s = np.cos(roll), np.sin(roll)
    return np.stack([c * right + s * down, c * down - s * right, forward])


def unit3(v):
    return v / np.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])


def two_rings(count, lens, seed):
    """`count` views: a low ring, then a high one, each evenly spaced and a little out of place, as a person would take them."""
    jitter = hashed(seed + 1, 8 * count).reshape(count, 8) * 2 - 1
    low = (count + 1) // 2
    views = []
    for i, j in enumerate(jitter):
        upper = i >= low
        size = count - low if upper else low
        angle = 2 * np.pi * ((i - low + 0.5 if upper else i) + 0.2 * j[0]) / size
        radius, height = (1.95, 1.55) if upper else (2.35, 0.68)
        radius, height = radius + 0.09 * j[1], height + 0.07 * j[2]
        centre = np.array([radius * np.cos(angle), radius * np.sin(angle), height])
        target = np.array([0.0, 0.0, 0.10 if upper else 0.16]) + 0.05 * j[3:6]
        views.append(View(f"view_{i:03d}.png", centre, looking_at(centre, target, 0.02 * j[6]), lens))
    return views
