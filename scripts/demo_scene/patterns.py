"""Colours of surfaces as functions of position: seeded noise and the still life's materials.

Every pattern is kept wider than about four pixels of the default pictures, so that pictures taken from different places agree.
"""

import numpy as np

LATTICE = 32  # cells after which the noise repeats


def hashed(seed, count):
    """`count` numbers in [0, 1) from a 64-bit mixer of integers, so that they are the same under every version of numpy."""
    with np.errstate(over="ignore"):
        x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed) * np.uint64(0xD1B54A32D192ED03)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53


class Noise:
    """Smooth noise in space with values in [-1, 1] and features about one unit wide."""

    def __init__(self, seed):
        self.table = hashed(seed, LATTICE**3) * 2 - 1

    def __call__(self, x, y, z):
        corners, fractions = [], []
        for value, stride in ((x, LATTICE * LATTICE), (y, LATTICE), (z, 1)):
            cell = np.floor(value)
            f = value - cell
            cell = cell.astype(np.int64)
            fractions.append(f * f * (3 - 2 * f))
            corners.append(((cell % LATTICE) * stride, ((cell + 1) % LATTICE) * stride))
        (x0, x1), (y0, y1), (z0, z1) = corners
        fx, fy, fz = fractions

        def along_z(base):
            low = self.table[base + z0]
            return low + fz * (self.table[base + z1] - low)

        near, near_up = along_z(x0 + y0), along_z(x0 + y1)
        far, far_up = along_z(x1 + y0), along_z(x1 + y1)
        near, far = near + fy * (near_up - near), far + fy * (far_up - far)
        return near + fx * (far - near)


def smoothstep(low, high, x):
    """0 at `low`, 1 at `high` (which may be the smaller), smooth between."""
    s = np.clip((x - low) / (high - low), 0.0, 1.0)
    return s * s * (3 - 2 * s)


def colour(r, g, b):
    """A colour as people pick it (display values 0-255) in linear light, [3, 1]."""
    return (np.array([[r], [g], [b]]) / 255.0) ** 2.2


def mix(a, b, share):
    return a + (b - a) * share


class Patterns:
    """The materials of the still life; each method maps points in the object's own axes [3, n] to linear colours [3, n]."""

    def __init__(self, seed):
        self.noise = Noise(seed)

    def table(self, p):
        """Planks of wood: bent rings along x, a slightly different tone a plank, a dark joint between planks."""
        plank = np.floor(p[1] / 0.32 + 0.5)
        across = p[1] / 0.32 + 0.5 - plank
        grain = self.noise(p[0] * 1.3 + plank * 7.3, p[1] * 9.0, p[2] * 9.0 + plank * 3.1)
        rings = 0.5 + 0.5 * np.sin(9.0 * grain + p[1] * 16.0)
        tone = self.noise(plank * 5.7, plank * 2.3, 0.5 + 0 * plank)
        wood = mix(colour(184, 130, 82), colour(203, 152, 101), rings) * (1 + 0.16 * tone)
        joint = smoothstep(0.0, 0.045, across) * smoothstep(0.0, 0.045, 1 - across)
        return wood * (0.65 + 0.35 * joint)

    def room(self, p, radius, floor):
        """Tiles and a round rug on the floor, a panelled wall that brightens upwards."""
        return np.where(p[2] < floor + 1e-6, self.floor(p), self.wall(p, radius, floor))

    def floor(self, p):
        tile_x, tile_y = p[0] / 0.9, p[1] / 0.9
        edge = np.minimum(np.abs(tile_x - np.round(tile_x)), np.abs(tile_y - np.round(tile_y)))
        tone = self.noise(np.floor(tile_x) * 3.7, np.floor(tile_y) * 5.1, 0 * p[0])
        tiles = colour(168, 154, 140) * (1 + 0.16 * tone + 0.08 * self.noise(p[0] * 5, p[1] * 5, 0 * p[0]))
        tiles = tiles * (0.72 + 0.28 * smoothstep(0.01, 0.045, edge))
        distance, angle = np.hypot(p[0], p[1]), np.arctan2(p[1], p[0])
        bands = 0.5 + 0.5 * np.sin(distance * 14.0)
        rug = mix(colour(128, 58, 58), colour(156, 78, 68), bands)
        flower = smoothstep(0.1, 0.5, np.cos(24 * angle)) * smoothstep(1.52, 1.6, distance) * (1 - smoothstep(1.82, 1.9, distance))
        rug = mix(rug, colour(198, 150, 116), flower)
        rug = mix(rug, colour(58, 66, 92), smoothstep(1.98, 2.02, distance))
        return mix(rug, tiles, smoothstep(2.14, 2.18, distance))

    def wall(self, p, radius, floor):
        height = p[2] - floor
        angle = np.arctan2(p[1], p[0])
        paint = mix(colour(150, 172, 168), colour(214, 216, 200), smoothstep(0.7, 2.6, height))
        stripes = smoothstep(-0.25, 0.25, np.cos(20 * angle))
        paint = paint * (0.93 + 0.07 * stripes) * (1 + 0.05 * self.noise(p[0] * 1.1, p[1] * 1.1, p[2] * 1.1))
        panel = smoothstep(0.0, 0.12, np.abs(np.cos(10 * angle)))
        wood = mix(colour(92, 80, 72), colour(120, 104, 92), panel)
        rail = smoothstep(0.62, 0.66, height) * (1 - smoothstep(0.74, 0.78, height))
        lower = mix(wood, colour(176, 158, 132), rail)
        return mix(lower, paint, smoothstep(0.74, 0.78, height))

    def vase(self, p, height):
        """White glaze with blue bands and a row of leaves."""
        z, angle = p[2] / height, np.arctan2(p[1], p[0])
        white, blue = colour(232, 234, 228), colour(38, 74, 146)
        band = smoothstep(0.035, 0.02, np.abs(z - 0.13)) + smoothstep(0.035, 0.02, np.abs(z - 0.63)) + smoothstep(0.93, 0.95, z)
        petal = np.abs(np.mod(6 * angle / (2 * np.pi) + 1.6 * (z - 0.38), 1.0) - 0.5)  # 0 on a petal's midrib, 0.5 between two
        leaf = smoothstep(-0.03, 0.03, 0.36 * (1 - ((z - 0.38) / 0.21) ** 2) - petal)
        leaf = leaf * (1 - 0.6 * smoothstep(0.06, 0.03, petal))
        lines = smoothstep(0.05, 0.4, np.cos(14 * angle)) * smoothstep(0.05, 0.03, np.abs(z - 0.8))
        painted = mix(white, blue, np.clip(band + 0.85 * leaf + 0.7 * lines, 0, 1))
        inside = (z > 1 - 1e-4) & (np.hypot(p[0], p[1]) < 0.11)
        return np.where(inside, colour(40, 40, 44), painted)

    def orange(self, p):
        pits = self.noise(p[0] * 30, p[1] * 30, p[2] * 30)
        blush = self.noise(p[0] * 5 + 3, p[1] * 5, p[2] * 5)
        return mix(colour(238, 138, 34), colour(244, 168, 52), 0.5 + 0.5 * blush) * (1 + 0.10 * pits)

    def pear(self, p, height):
        speckle = self.noise(p[0] * 34, p[1] * 34, p[2] * 34)
        blush = smoothstep(-0.1, 0.5, p[0] / 0.16 + 0.5 * self.noise(p[0] * 6, p[1] * 6, p[2] * 6))
        skin = mix(colour(170, 184, 70), colour(206, 120, 66), 0.7 * blush) * (1 + 0.12 * speckle)
        return mix(skin, colour(86, 62, 40), smoothstep(0.95, 0.97, p[2] / height))

    def ball(self, p):
        """Six sectors of three colours with white ends."""
        angle = np.arctan2(p[1], p[0]) + 0.4
        sector = np.cos(3 * angle)
        skin = mix(colour(196, 44, 48), colour(240, 226, 196), smoothstep(-0.12, 0.12, sector))
        return mix(skin, colour(36, 70, 120), smoothstep(0.13, 0.145, np.abs(p[2])))

    def doughnut(self, p, tube):
        """Dough below, pink icing with a wavy rim above, sprinkles on it."""
        angle = np.arctan2(p[1], p[0])
        rim = 0.012 * np.sin(5 * angle) + 0.008 * np.sin(9 * angle + 1) - 0.02
        icing = smoothstep(-0.012, 0.012, p[2] - rim)
        dough = colour(198, 138, 76) * (1 + 0.12 * self.noise(p[0] * 20, p[1] * 20, p[2] * 20))
        spots = smoothstep(0.35, 0.5, self.noise(p[0] * 26, p[1] * 26, p[2] * 26))
        hue = self.noise(p[0] * 9 + 11, p[1] * 9, p[2] * 9)
        sprinkle = np.where(hue > 0.12, colour(250, 240, 190), np.where(hue > -0.15, colour(110, 190, 200), colour(250, 250, 250)))
        top = mix(colour(222, 110, 140), sprinkle, spots * smoothstep(0.2 * tube, 0.5 * tube, p[2]))
        return mix(dough, top, icing)

    def book(self, p, half, cover):
        """A bound book: pages on three sides, a spine, a framed cover."""
        pages = (np.abs(p[2]) < half[2] - 0.013) & (p[1] > -half[1] + 0.012)
        side = pages & ((np.abs(p[0]) > half[0] - 1e-6) | (p[1] > half[1] - 1e-6))
        leaves = colour(226, 216, 192) * (0.94 + 0.06 * np.sin(p[2] * 180))
        inner = np.maximum(np.abs(p[0]) / half[0], np.abs(p[1]) / half[1])
        frame = smoothstep(0.70, 0.74, inner) * (1 - smoothstep(0.80, 0.84, inner))
        heart = 1 - smoothstep(0.10, 0.13, np.hypot(p[0], p[1]))
        gilt = np.clip(frame + heart, 0, 1) * (np.abs(p[2]) > half[2] - 1e-6)
        return np.where(side, leaves, mix(cover, colour(226, 186, 98), 0.8 * gilt))

    def candle(self, p, height):
        wax = mix(colour(232, 214, 180), colour(206, 96, 70), smoothstep(-0.1, 0.1, np.sin(p[2] * 42 + 2 * np.arctan2(p[1], p[0]))))
        return np.where(p[2] > height - 1e-6, colour(240, 226, 196), wax)
