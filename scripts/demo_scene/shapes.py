"""Surfaces that a ray can hit. Each shape has a bounding sphere, `hit` (distance along unit rays) and `normal` (unit, outward)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

NEAR = 1e-4  # hits closer than this are the surface that a shadow ray starts from


def dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(v):
    return v / np.sqrt(np.maximum(dot(v, v), 1e-24))


def first_positive(near, far):
    """The smaller of two ordered roots that lies in front of the ray, else infinity."""
    return np.where(near > NEAR, near, np.where(far > NEAR, far, np.inf))


def sphere_interval(origins, directions, centre, radius):
    """Entry and exit distance through a sphere; NaN where the ray's line misses it."""
    to_origin = origins - np.reshape(centre, (3, 1))
    b = dot(to_origin, directions)
    with np.errstate(invalid="ignore"):
        root = np.sqrt(b * b - dot(to_origin, to_origin) + radius * radius)
    return -b - root, -b + root


def slab_interval(origins, directions, low, high):
    """Entry and exit distance between two parallel planes of one axis (`origins`, `directions` [n] of that axis)."""
    safe = np.where(np.abs(directions) < 1e-12, 1e-12, directions)
    a, b = (low - origins) / safe, (high - origins) / safe
    return np.minimum(a, b), np.maximum(a, b)


def cylinder_interval(origins, directions, radius, low, high):
    """Entry and exit distance through an upright solid cylinder about the z axis; entry > exit, or NaN, is a miss."""
    a = np.maximum(directions[0] ** 2 + directions[1] ** 2, 1e-12)
    b = origins[0] * directions[0] + origins[1] * directions[1]
    c = origins[0] ** 2 + origins[1] ** 2 - radius * radius
    with np.errstate(invalid="ignore"):
        root = np.sqrt(b * b - a * c)
    bottom, top = slab_interval(origins[2], directions[2], low, high)
    return np.maximum((-b - root) / a, bottom), np.minimum((-b + root) / a, top)


@dataclass
class Sphere:
    centre: tuple
    radius: float

    @property
    def bounding_sphere(self):
        return self.centre, self.radius

    def hit(self, origins, directions):
        return first_positive(*sphere_interval(origins, directions, self.centre, self.radius))

    def normal(self, points):
        return (points - np.reshape(self.centre, (3, 1))) / self.radius


@dataclass
class Box:
    """A box turned by `turn` radians about the vertical."""

    centre: tuple
    half: tuple
    turn: float = 0.0

    @property
    def bounding_sphere(self):
        return self.centre, float(np.linalg.norm(self.half))

    def rotate(self, vectors, sign):
        c, s = np.cos(self.turn), sign * np.sin(self.turn)
        return np.stack([c * vectors[0] + s * vectors[1], c * vectors[1] - s * vectors[0], vectors[2]])

    def local(self, points):
        """The points in the box's own axes, its centre at zero."""
        return self.rotate(points - np.reshape(self.centre, (3, 1)), 1.0)

    def hit(self, origins, directions):
        origins, directions = self.local(origins), self.rotate(directions, 1.0)
        spans = [slab_interval(origins[i], directions[i], -self.half[i], self.half[i]) for i in range(3)]
        near = np.maximum(np.maximum(spans[0][0], spans[1][0]), spans[2][0])
        far = np.minimum(np.minimum(spans[0][1], spans[1][1]), spans[2][1])
        return np.where(near <= far, first_positive(near, far), np.inf)

    def normal(self, points):
        ratio = self.local(points) / np.reshape(self.half, (3, 1))
        face = np.abs(ratio) >= np.max(np.abs(ratio), axis=0)
        return self.rotate(unit(np.where(face, np.sign(ratio), 0.0)), -1.0)


@dataclass
class Cylinder:
    """An upright solid cylinder with flat ends; `base` is the centre of its foot."""

    base: tuple
    radius: float
    height: float

    @property
    def bounding_sphere(self):
        x, y, z = self.base
        return (x, y, z + self.height / 2), float(np.hypot(self.radius, self.height / 2))

    def hit(self, origins, directions):
        near, far = cylinder_interval(origins - np.reshape(self.base, (3, 1)), directions, self.radius, 0.0, self.height)
        return np.where(near <= far, first_positive(near, far), np.inf)

    def normal(self, points):
        x, y, z = points - np.reshape(self.base, (3, 1))
        side = np.stack([x / self.radius, y / self.radius, np.zeros_like(z)])
        end = np.stack([np.zeros_like(z), np.zeros_like(z), np.where(z > self.height / 2, 1.0, -1.0)])
        flat = (z > self.height - 1e-6) | (z < 1e-6)
        return np.where(flat, end, unit(side))


@dataclass
class Revolution:
    """A profile turned about a vertical axis: the solid `x^2 + y^2 < profile(z)^2`, 0 < z < height, standing on `base`."""

    base: tuple
    height: float
    profile: Callable  # z [n] -> radius [n], smooth, positive
    steps: int = 40
    widest: float = field(init=False)

    def __post_init__(self):
        self.widest = float(self.profile(np.linspace(0.0, self.height, 200)).max()) + 1e-3

    @property
    def bounding_sphere(self):
        x, y, z = self.base
        return (x, y, z + self.height / 2), float(np.hypot(self.widest, self.height / 2))

    def outside(self, points):
        return points[0] ** 2 + points[1] ** 2 - self.profile(points[2]) ** 2

    def hit(self, origins, directions):
        """Equal steps through the bounding cylinder find the first change of sign, bisection refines it."""
        origins = origins - np.reshape(self.base, (3, 1))
        near, far = cylinder_interval(origins, directions, self.widest, 0.0, self.height)
        near = np.maximum(near, NEAR)
        inside = np.full(near.shape, np.inf)
        alive = near < far
        origins, directions, near, far = origins[:, alive], directions[:, alive], near[alive], far[alive]
        found = np.full(near.shape, np.inf)
        outer, stride = near, (far - near) / self.steps
        for k in range(self.steps + 1):
            t = near + k * stride
            entered = (found == np.inf) & (self.outside(origins + t * directions) < 0)
            found = np.where(entered, t, found)
            outer = np.where(found == np.inf, t, outer)
        some = found < np.inf
        low, high = outer[some], found[some]
        for _ in range(20):
            middle = (low + high) / 2
            within = self.outside(origins[:, some] + middle * directions[:, some]) < 0
            low, high = np.where(within, low, middle), np.where(within, middle, high)
        found[some] = high
        inside[alive] = found
        return inside

    def normal(self, points):
        x, y, z = points - np.reshape(self.base, (3, 1))
        radius, slope = self.profile(z), (self.profile(z + 1e-4) - self.profile(z - 1e-4)) / 2e-4
        end = np.stack([np.zeros_like(z), np.zeros_like(z), np.where(z > self.height / 2, 1.0, -1.0)])
        flat = (z > self.height - 1e-5) | (z < 1e-5)
        return np.where(flat, end, unit(np.stack([x, y, -radius * slope])))


@dataclass
class Torus:
    """A ring lying flat: a tube of radius `tube` about a circle of radius `ring`."""

    centre: tuple
    ring: float
    tube: float

    @property
    def bounding_sphere(self):
        return self.centre, self.ring + self.tube

    def distance(self, points):
        return np.hypot(np.hypot(points[0], points[1]) - self.ring, points[2]) - self.tube

    def hit(self, origins, directions):
        """Sphere tracing: a step as long as the distance to the surface can never pass through it."""
        near, far = sphere_interval(origins, directions, self.centre, self.ring + self.tube)
        origins = origins - np.reshape(self.centre, (3, 1))
        t = np.maximum(near, 10 * NEAR)
        for _ in range(48):
            step = self.distance(origins + t * directions)
            t = t + step
        return np.where((np.abs(step) < NEAR) & (t < far), t, np.inf)

    def normal(self, points):
        x, y, z = points - np.reshape(self.centre, (3, 1))
        around = np.maximum(np.hypot(x, y), 1e-9)
        return unit(np.stack([x * (1 - self.ring / around), y * (1 - self.ring / around), z]))


@dataclass
class Room:
    """The inside of an upright cylinder: floor, round wall and ceiling. Every ray from within hits it."""

    radius: float
    floor: float
    ceiling: float
    bounding_sphere = None

    def hit(self, origins, directions):
        return cylinder_interval(origins, directions, self.radius, self.floor, self.ceiling)[1]

    def normal(self, points):
        x, y, z = points
        low, high = z < self.floor + 1e-6, z > self.ceiling - 1e-6
        up = np.where(low, 1.0, np.where(high, -1.0, 0.0))
        level = np.where(low | high, 0.0, -1.0 / self.radius)
        return np.stack([x * level, y * level, up])
