"""Extent: how large the cube is that gets a field, which box in it is worth marching through, and how far each view sees."""

from dataclasses import dataclass

import numpy as np

from nerf.scene.cameras import in_picture, spread_directions

BOUNDS = (2.0, 4.0, 8.0, 16.0)  # not 1: photos show more than their sparse points, which may lie on one object alone
CONTRACTED_BOUND = 2.0
CONTRACTED_REACH = 128.0  # how far rays go in contracted space when nobody says: there 2 - 1/128 is as good as infinity
SHARE_INSIDE = 0.95
OUTER = 0.001  # share of the points beyond the box at each end of each axis
PADDING = 0.05  # of the box's sides; more lets rays spend their samples behind the walls

# Per view, the share of points dropped at the near and at the far end, and at least one: a single wrong point must not set the limit.
DROPPED = 0.005
FEWEST = 8
NEAR_MARGIN, FAR_MARGIN = 0.9, 1.1

# Where views start when nobody says: all of them at three quarters of the least distance to a sparse point. What has no texture has no
# points, so a start for each view by its own points would cut things off; and fog right before the cameras is what a field of few photos
# learns first.
MIN_NEAR = 0.05
NEAR_SHARE = 0.75

# Without any points, they start where half of all rays come into that many other pictures: nearer than that no depth can be found, and what
# a field puts there is fog. Tried at steps of a factor from MIN_NEAR on, for some of the views. Where views are few, that can be inside of
# what they look at: hence no farther than half of the way to the centre.
WITNESSES = 3
OVERLAP_STEP, OVERLAP_STEPS = 1.15, 24
OVERLAP_VIEWS, OVERLAP_RAYS, OVERLAP_WAY = 40, 0.5, 0.5


@dataclass(frozen=True)
class Distances:
    """least, most [n] float64: how near and how far each view is known to see, in world units; inf and 0 for a view of which nothing is
    known; what: by what it is known, or None where it is known of no view."""

    least: np.ndarray
    most: np.ndarray
    what: str | None


def scene_bound(marks, capture, options):
    """Half the side of the scene cube, and a note that says why. marks: Landmarks in the world, or None.

    With --contract the cube is that of contracted space, whatever --bound says: there --bound is the reach of the rays (see scene_box).
    """
    if options.contract:
        return CONTRACTED_BOUND, f"bound {CONTRACTED_BOUND:g} (--contract folds all space within {_reach(options):g} into it)"
    if options.bound is not None:
        return float(options.bound), f"bound {options.bound:g} (as given{_share(marks, options.bound)})"
    if capture.synthetic:
        return 1.0, "bound 1 (usual for NeRF-synthetic scenes; --bound changes it)"
    if capture.framed:
        return 1.0, "bound 1 (the unit sphere of the file; --bound changes it)"
    if marks is None:
        return 2.0, "bound 2 (there are no sparse points to tell; --bound changes it)"
    for bound in BOUNDS:
        if _inside(marks, bound) >= SHARE_INSIDE:
            return bound, f"bound {bound:g} (the smallest of 2, 4, 8, 16 that suffices{_share(marks, bound)}; --bound changes it)"
    return BOUNDS[-1], f"bound {BOUNDS[-1]:g} (the largest there is{_share(marks, BOUNDS[-1])}; consider -O2, or --bound)"


def _reach(options):
    return CONTRACTED_REACH if options.bound is None else float(options.bound)


def _inside(marks, bound):
    return (np.abs(marks.points).max(axis=1) <= bound).mean()


def _share(marks, bound):
    return "" if marks is None else f", {100 * _inside(marks, bound):.1f} % of the {marks.noun}s are inside"


def scene_box(points, positions, bound, options):
    """The box [6] float32 = least x, y, z, greatest x, y, z that holds the sparse points (outliers apart) and the cameras.

    It is padded a little and clipped to the cube of `bound`. The whole cube where there are no points or nothing of the box is left in the
    cube. With --contract a cube of half side --bound (128 where not given), in the world before contraction.
    """
    half = _reach(options) if options.contract else bound
    cube = np.array([-half] * 3 + [half] * 3, dtype=np.float32)
    if points is None or options.contract:
        return cube
    low = np.minimum(np.quantile(points, OUTER, axis=0), positions.min(axis=0))
    high = np.maximum(np.quantile(points, 1 - OUTER, axis=0), positions.max(axis=0))
    padding = PADDING * (high - low)
    low, high = np.clip([low - padding, high + padding], -bound, bound)
    return np.concatenate([low, high]).astype(np.float32) if (high > low).all() else cube


def view_limits(distances, options, overlap=None):
    """Where each view starts and ends, as distances along its rays in the world, and notes that say why.

    Args:
        distances: Distances of the n views; options: min_near (None = automatic), enable_cam_near_far; overlap: see overlap_distance.
    Returns:
        near, far [n] float32 (far inf where there is no limit), notes.
    """
    least, most, what = distances.least, distances.most, distances.what
    start, why = _start(least, options.min_near, what, overlap)
    near, far = np.full(len(least), start), np.full(len(least), np.inf)
    sighted = np.isfinite(least)
    if options.enable_cam_near_far and what:
        near[sighted], far[sighted] = np.maximum(NEAR_MARGIN * least[sighted], start), FAR_MARGIN * most[sighted]
        why = f"views are limited to distances from {near.min():.3g} to {far[sighted].max(initial=0):.3g} (--enable_cam_near_far)"
        why += f"; {(~sighted).sum()} see no {what} and have no limits" * bool((~sighted).any())
    notes = [why]
    if options.enable_cam_near_far and not what:
        notes.append("--enable_cam_near_far has no effect, because nothing says how far the views see")
    return near.astype(np.float32), far.astype(np.float32), notes


def overlap_distance(poses, intrinsics, sizes):
    """The distance from which on half of all rays are in the pictures of WITNESSES other views, at most half of that from the world's centre to
    the nearest camera; or None where it is farther than looked for.

    poses [n,3,4] float64 in the world, intrinsics [n,4], sizes [n,2].
    """
    distances = MIN_NEAR * OVERLAP_STEP ** np.arange(OVERLAP_STEPS)
    local, shares = spread_directions(intrinsics, sizes), []
    local /= np.linalg.norm(local, axis=-1, keepdims=True)
    for i in range(0, len(poses), -(-len(poses) // OVERLAP_VIEWS)):
        points = (poses[i, :, 3] + distances[:, None, None] * (local[i] @ poses[i, :, :3].T)).reshape(-1, 3)
        views = zip(poses, intrinsics, sizes, strict=True)
        witnesses = sum((in_picture(*view, points).astype(int) for j, view in enumerate(views) if j != i), np.zeros(len(points), dtype=int))
        shares.append((witnesses.reshape(OVERLAP_STEPS, -1) >= WITNESSES).mean(axis=1))
    common = np.mean(shares, axis=0) >= OVERLAP_RAYS
    most = OVERLAP_WAY * np.linalg.norm(poses[:, :, 3], axis=1).min()
    return float(min(distances[np.argmax(common)], most)) if common.any() else None


def _start(least, min_near, what, overlap):
    """The distance at which all views start, and a note."""
    if min_near is not None:
        return min_near, f"views start at {min_near:g} (as given)"
    start = NEAR_SHARE * least.min()
    if overlap is not None and overlap > MIN_NEAR:
        return overlap, f"views start at {overlap:.3g} (nearer than that, few other views see what one sees; --min_near changes it)"
    if not MIN_NEAR < start < np.inf:
        return MIN_NEAR, f"views start at {MIN_NEAR:g} (--min_near changes it)"
    return start, f"views start at {start:.3g} (3/4 of the way to the nearest {what} of all; --min_near changes it)"


def seen_distances(points, seen, positions):
    """Distances from cameras at positions [n,3] to the sparse points [p,3] they see, outliers dropped; seen [n]: rows of `points`, any iterable."""
    least, most = np.full(len(positions), np.inf), np.zeros(len(positions))
    for i, (rows, position) in enumerate(zip(seen, positions, strict=True)):
        if not len(rows):
            continue
        distances = np.sort(np.linalg.norm(points[rows] - position, axis=1))
        drop = max(1, round(DROPPED * len(rows))) if len(rows) >= FEWEST else 0
        least[i], most[i] = distances[drop], distances[len(rows) - 1 - drop]
    return Distances(least, most, "sparse point")


def stated_distances(capture, scale):
    """Distances by the depths that a Capture states, `scale` world units a file unit: to the corners of the picture a ray is longer."""
    corners = np.maximum(capture.intrinsics[:, 2:], capture.full_sizes - capture.intrinsics[:, 2:]) / capture.intrinsics[:, :2]
    stretch = np.sqrt(1 + (corners**2).sum(axis=1))
    return Distances(scale * capture.depths[:, 0], scale * stretch * capture.depths[:, 1], "stated depth")


def no_distances(count):
    """Distances of `count` views of which nothing is known."""
    return Distances(np.full(count, np.inf), np.zeros(count), None)
