"""Points on the surfaces and the views that see them: what structure from motion would have found."""

from dataclasses import dataclass

import numpy as np

from .patterns import hashed
from .shapes import dot
from .tracer import display, nearest_hit, shade

FEWEST_VIEWS = 3
TOLERANCE = 2e-3  # world units by which a ray may stop before the point and still count as reaching it


@dataclass
class SparsePoints:
    positions: np.ndarray  # [p, 3] float64
    colours: np.ndarray  # [p, 3] uint8
    tracks: list  # a point: list of (view number, row in that view's keypoints)
    keypoints: list  # a view: list of (u, v, point number)


def sample_points(things, views, count, seed):
    """About `count` surface points met by random rays of all views, each seen by `FEWEST_VIEWS` views or more."""
    random = hashed(seed + 2, 2 * count).reshape(2, count)
    positions, colours = np.empty((3, count)), np.empty((3, count))
    for number, view in enumerate(views):
        mine = np.arange(number, count, len(views))
        directions = view.rays(random[0, mine] * view.lens.width, random[1, mine] * view.lens.height)
        colours[:, mine], t = shade(things, view.centre[:, None], directions, (0.0, 0.0))
        positions[:, mine] = view.centre[:, None] + t * directions
    seen = [keypoints_of(things, view, positions) for view in views]
    kept = np.flatnonzero(np.sum([visible for visible, _, _ in seen], axis=0) >= FEWEST_VIEWS)
    tracks, keypoints = [[] for _ in kept], [[] for _ in views]
    for number, (visible, u, v) in enumerate(seen):
        for point in np.flatnonzero(visible[kept]):
            tracks[point].append((number, len(keypoints[number])))
            keypoints[number].append((float(u[kept[point]]), float(v[kept[point]]), int(point)))
    shown = np.floor(display(colours[:, kept]) * 255 + 0.5).astype(np.uint8)
    return SparsePoints(positions[:, kept].T.copy(), shown.T.copy(), tracks, keypoints)


def keypoints_of(things, view, positions):
    """Whether `view` sees each point [n] bool, and where: `u`, `v` [n] in pixels."""
    u, v, depth = view.project(positions)
    framed = (depth > 0) & (u >= 0) & (u < view.lens.width) & (v >= 0) & (v < view.lens.height)
    towards = positions - view.centre[:, None]
    distances = np.sqrt(dot(towards, towards))
    t, _ = nearest_hit(things, np.broadcast_to(view.centre[:, None], positions.shape), towards / distances)
    return framed & (t > distances - TOLERANCE), u, v
