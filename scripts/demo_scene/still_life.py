"""What stands in the room: shapes, their materials and the light."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from .patterns import Patterns, colour, smoothstep
from .shapes import Box, Cylinder, Revolution, Room, Sphere, Torus

ROOM = Room(radius=3.5, floor=-0.8, ceiling=3.4)
LIGHT_CENTRE, LIGHT_HALF = np.array([1.5, -1.3, 2.9]), 0.42  # a square lamp that hangs level
SKY, BOUNCE = colour(226, 236, 250), colour(178, 150, 128)  # light from above and from the floor


@dataclass
class Thing:
    shape: object
    paint: Callable  # points [3, n] in the world -> linear colours [3, n]
    gloss: float = 0.0  # strength of the highlight
    sharpness: float = 30.0  # exponent of the highlight
    mirror: float = 0.0  # share of the room that is reflected straight on; more at a glancing angle


def vase_profile(height):
    """A foot, a belly, a neck and a lip."""

    def radius(z):
        z = z / height
        belly = 0.235 * np.exp(-(((z - 0.40) / 0.27) ** 2))
        lip = 0.075 * smoothstep(0.74, 1.02, z)
        foot = 0.06 * (1 - smoothstep(0.0, 0.12, z))
        return 0.085 + belly + lip + foot

    return radius


def pear_profile(height):
    """A round body, a narrow shoulder and a stalk."""

    def radius(z):
        z = z / height
        body = 0.165 * np.sqrt(np.clip(1 - ((z - 0.33) / 0.345) ** 2, 1e-4, None))
        neck = 0.088 * np.sqrt(np.clip(1 - ((z - 0.62) / 0.225) ** 2, 1e-4, None))
        stalk = 0.013
        return (body**6 + neck**6 + stalk**6) ** (1 / 6)

    return radius


def still_life(seed):
    """The room, the table and what lies on it, as a list of things; the room is the first."""
    patterns = Patterns(seed)

    def local(method, shape, origin, *extra):
        centre = np.reshape(origin, (3, 1))
        return Thing(shape, lambda p: method(p - centre, *extra))

    def wooden(p):
        return colour(120, 78, 46) * (1 + 0.1 * patterns.noise(p[0] * 6, p[1] * 6, p[2] * 1.5))

    things = [
        Thing(ROOM, lambda p: patterns.room(p, ROOM.radius, ROOM.floor)),
        Thing(Cylinder((0, 0, -0.07), 1.2, 0.07), lambda p: np.where(p[2] > -1e-6, patterns.table(p), wooden(p)), gloss=0.16, sharpness=22),
        Thing(Cylinder((0, 0, -0.8), 0.13, 0.73), wooden),
        Thing(Cylinder((0, 0, -0.8), 0.5, 0.06), wooden),
    ]

    def add(shape, origin, method, *extra, gloss, sharpness, mirror=0.0):
        thing = local(method, shape, origin, *extra)
        thing.gloss, thing.sharpness, thing.mirror = gloss, sharpness, mirror
        things.append(thing)

    at = (-0.18, 0.36, 0.0)
    add(Revolution(at, 0.86, vase_profile(0.86)), at, patterns.vase, 0.86, gloss=0.7, sharpness=60, mirror=0.05)
    at = (0.62, 0.30, 0.0)
    add(Revolution(at, 0.46, pear_profile(0.46)), at, patterns.pear, 0.46, gloss=0.25, sharpness=25)
    for at, radius in (((0.34, 0.56, 0.155), 0.155), ((0.24, 0.10, 0.145), 0.145)):
        add(Sphere(at, radius), at, patterns.orange, gloss=0.22, sharpness=18)
    at = (-0.56, -0.42, 0.21)
    add(Sphere(at, 0.21), at, patterns.ball, gloss=0.8, sharpness=90, mirror=0.06)
    at = (0.18, -0.56, 0.098)
    add(Torus(at, 0.2, 0.098), at, patterns.doughnut, 0.098, gloss=0.35, sharpness=30)
    at = (-0.80, 0.22, 0.0)
    add(Cylinder(at, 0.095, 0.52), at, patterns.candle, 0.52, gloss=0.15, sharpness=15)
    lower, upper = Box((0.72, -0.26, 0.055), (0.29, 0.21, 0.055), 0.5), Box((0.71, -0.25, 0.158), (0.24, 0.18, 0.048), 0.18)
    for box, cover in ((lower, colour(38, 92, 84)), (upper, colour(146, 46, 52))):
        paint = partial(lambda box, cover, p: patterns.book(box.local(p), box.half, cover), box, cover)
        things.append(Thing(box, paint, gloss=0.12, sharpness=20))
    return things
