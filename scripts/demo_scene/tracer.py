"""From rays to colours: nearest hit, shadow of a square lamp, ambient light with nearby occluders, highlights and a faint mirror image."""

import numpy as np

from .patterns import mix, smoothstep
from .shapes import NEAR, dot, sphere_interval, unit
from .still_life import BOUNCE, LIGHT_CENTRE, LIGHT_HALF, SKY

LAMP = 10.5 * np.array([[1.0], [0.95], [0.86]])
AMBIENT = 0.40
EXPOSURE = 1.16


def nearest_hit(things, origins, directions):
    """Distance [n] and number of the thing [n] that each ray meets first."""
    best = things[0].shape.hit(origins, directions)
    which = np.zeros(best.shape, np.int64)
    for number, thing in enumerate(things[1:], 1):
        near, far = sphere_interval(origins, directions, *thing.shape.bounding_sphere)
        chosen = np.flatnonzero((far > NEAR) & (near < best))  # NaN, a miss, compares false
        t = thing.shape.hit(origins[:, chosen], directions[:, chosen])
        closer = t < best[chosen]
        best[chosen[closer]] = t[closer]
        which[chosen[closer]] = number
    return best, which


def is_shadowed(things, points, directions, distances):
    """Whether anything but the room stands between each point and its light, [n] bool."""
    shadowed = np.zeros(distances.shape, bool)
    for thing in things[1:]:
        near, far = sphere_interval(points, directions, *thing.shape.bounding_sphere)
        chosen = np.flatnonzero((far > NEAR) & (near < distances) & ~shadowed)
        t = thing.shape.hit(points[:, chosen], directions[:, chosen])
        shadowed[chosen] = t < distances[chosen]
    return shadowed


def ambient_share(things, which, points, normals):
    """How much of the surroundings each point sees [n]: every small thing hides about the solid angle of its bounding sphere."""
    share = np.ones(which.shape)
    for number, thing in enumerate(things):
        if thing.shape.bounding_sphere is None or thing.shape.bounding_sphere[1] > 0.7:
            continue
        centre, radius = thing.shape.bounding_sphere
        radius = 0.8 * radius
        towards = np.reshape(centre, (3, 1)) - points
        squared = np.maximum(dot(towards, towards), radius * radius)
        hidden = np.maximum(dot(towards, normals), 0) / np.sqrt(squared) * (radius * radius / squared)
        share *= np.where(which == number, 1.0, 1 - 0.75 * hidden)
    return share


def surroundings(directions):
    """The blurred room as a polished thing mirrors it, [3, n]: wall, ceiling, floor and a window."""
    room = mix(BOUNCE * 0.5, SKY * 0.75, smoothstep(-0.5, 0.7, directions[2]))
    window = smoothstep(0.80, 0.95, -0.75 * directions[0] + 0.35 * directions[1] + 0.56 * directions[2])
    return room + 1.6 * window * SKY


def shade(things, origins, directions, lamp):
    """Linear colours [3, n] and distances [n] along unit rays.

    origins [3, n] or [3, 1], directions [3, n]; lamp: the point of the square lamp that shines, x and y from -1 to 1.
    """
    origins = np.broadcast_to(origins, directions.shape)
    t, which = nearest_hit(things, origins, directions)
    points = origins + t * directions
    albedo, normals = np.empty_like(points), np.empty_like(points)
    gloss, sharpness, mirror = np.empty_like(t), np.empty_like(t), np.empty_like(t)
    for number, thing in enumerate(things):
        mine = np.flatnonzero(which == number)
        albedo[:, mine] = thing.paint(points[:, mine])
        normals[:, mine] = thing.shape.normal(points[:, mine])
        gloss[mine], sharpness[mine], mirror[mine] = thing.gloss, thing.sharpness, thing.mirror
    light = LIGHT_CENTRE + LIGHT_HALF * np.array([lamp[0], lamp[1], 0.0])
    to_light = light[:, None] - points
    distances = np.sqrt(dot(to_light, to_light))
    to_light /= distances
    facing = np.maximum(dot(normals, to_light), 0)
    lit = np.where(facing > 0, 1.0, 0.0)
    chosen = np.flatnonzero(facing > 0)
    lifted = points[:, chosen] + 1e-3 * normals[:, chosen]
    lit[chosen] = ~is_shadowed(things, lifted, to_light[:, chosen], distances[chosen])
    lamp_light = LAMP * (lit * (0.35 + 0.65 * np.maximum(to_light[2], 0)) / (1.5 + distances**2))
    ambient = AMBIENT * mix(BOUNCE, SKY, 0.5 + 0.5 * normals[2]) * ambient_share(things, which, points, normals)
    facing_eye = -dot(normals, directions)
    reflected = directions + 2 * facing_eye * normals
    highlight = gloss * np.maximum(dot(unit(reflected), to_light), 0) ** sharpness
    glancing = mirror + (mirror > 0) * 0.35 * np.clip(1 - facing_eye, 0, 1) ** 5
    colours = albedo * (ambient + facing * lamp_light) + highlight * lamp_light + glancing * surroundings(reflected)
    return colours, t


def display(colours):
    """Linear light [3, n] as display values in [0, 1]: exposure, a soft shoulder in place of clipping, gamma 2.2."""
    x = EXPOSURE * colours
    x = np.where(x < 0.7, x, 0.7 + 0.3 * np.tanh((x - 0.7) / 0.3))
    return x ** (1 / 2.2)
