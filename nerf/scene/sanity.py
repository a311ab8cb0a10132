"""Sanity report: do bound, scale, near and far fit the cameras and sparse points? A line or two of facts, then warnings that name the flag to change.

"Sees" means that a point projects into the picture: what stands between does not count, nor, but for what the lens does not reach, distortion.
"""

import numpy as np

from nerf.scene.cameras import in_picture, spread_directions
from nerf.scene.extent import BOUNDS
from nerf.scene.lens import beyond_reach
from nerf.scene.normalise import NEARLY_ALL

SHARE_WANTED = 0.9  # of the sparse points that should be within the bound
WASTE = 4  # a given bound this many times what the points need spends most of the field on nothing
FEWEST_POINTS = 30  # fewer say nothing
NEAREST = 0.02  # share of the sightings that are nearer than the start to try, times two: these are outliers
CUT_SHARE = 0.1  # of sightings that near or far may cut off
LEAST_REACH, MOST_REACH = 0.1, 6.0  # of nearly all cameras; --scale is meant to bring it to about 1, or 4 about a rendered object
UNSEEN_SHARE = 0.5  # of the marched box that may be seen by no camera
MISSED_SHARE = 0.5  # of the rays that may go past it
GRID, BEYOND_SHARE = 64, 0.001  # pixels of a row and of a column that are looked at; share of them that the lens need not reach
MOST_CAMERAS, MOST_POINTS, PROBES = 100, 5000, 8000


def sanity_report(scene, options):
    """Lines about a scene: what its extent is, and a line that begins with "warning:" for each thing that looks wrong.

    Args:
        scene: nerf.scene.Scene; options: nerf.options.Options that it was loaded with.
    """
    positions = scene.cameras.poses[scene.train, :, 3].astype(np.float64)
    distances = np.linalg.norm(positions, axis=1)
    reach = np.quantile(distances, NEARLY_ALL, method="lower")
    radii = None if scene.points is None or len(scene.points) < FEWEST_POINTS else np.abs(scene.points).max(axis=1)
    lines = [f"extent: cameras are {distances.min():.3g} to {distances.max():.3g} from the centre ({distances.mean():.3g} on average)" + _points_text(radii)]
    if not options.contract:
        lines += _bound_warnings(scene, options, positions, radii)
    wrong_scale = _scale_warnings(options, reach)
    lines += wrong_scale
    some = scene.train[:: max(1, -(-len(scene.train) // MOST_CAMERAS))]
    cameras = scene.cameras.select(some)
    lines += _lens_warnings(scene, some)
    if radii is not None and not wrong_scale:
        lines += _range_warnings(scene, options, cameras)
    if not options.contract:
        lines += _missed_warnings(scene, cameras) if not wrong_scale else []
        lines += _unseen_warnings(scene, options, cameras)
    return lines


def _points_text(radii):
    """How much of the scene each bound would hold."""
    if radii is None:
        return ""
    shares = [f"{bound:g}: {100 * (radii <= bound).mean():.0f} %" for bound in BOUNDS]
    return f"; share of the sparse points within bound {', '.join(shares)}"


def _bound_warnings(scene, options, positions, radii):
    """The bound against the cameras and sparse points. Without points it may be an object seen from outside its cube, which is as it should be."""
    if radii is None:
        return []
    reach = np.abs(positions).max()
    fits = [bound for bound in BOUNDS if bound >= reach and (radii <= bound).mean() >= SHARE_WANTED]
    outside, cameras = (radii > scene.bound).mean(), int((np.abs(positions).max(axis=1) > scene.bound).sum())
    if outside > 1 - SHARE_WANTED or cameras:
        what = [f"{100 * outside:.0f} % of the sparse points"] if outside > 1 - SHARE_WANTED else []
        what += [f"{cameras} of {len(positions)} cameras"] if cameras else []
        remedy = f"--bound {fits[0]:g}, which holds {100 * (radii <= fits[0]).mean():.0f} % of the points" if fits else "-O2, whose contracted space has room for all"
        return [f"warning: {' and '.join(what)} are outside the bound {scene.bound:g}; try {remedy}"]
    if "bound" in options.given and fits and scene.bound >= WASTE * fits[0]:
        return [f"warning: --bound {scene.bound:g} makes detail coarse, as {fits[0]:g} holds {100 * (radii <= fits[0]).mean():.0f} % of the sparse points; try --bound {fits[0]:g}"]
    return []


def _scale_warnings(options, reach):
    """reach: of nearly all cameras; one far out says nothing of the scale."""
    if "scale" not in options.given or reach == 0 or LEAST_REACH <= reach <= MOST_REACH:
        return []
    trouble = "so near to the centre that the field has little detail there" if reach < LEAST_REACH else "so far from it that the field is coarse in between"
    return [f"warning: --scale {options.scale:g} puts the cameras up to {reach:.3g} from the centre, {trouble}; leave it out, or try --scale {options.scale / reach:.3g}"]


def _lens_warnings(scene, views):
    """Pixels that are learned from, although the lens leads no ray to them."""
    strayed = used = 0
    for i in views:
        width, height = (int(side) for side in scene.cameras.sizes[i])
        x, y = (np.linspace(0, side - 1, GRID).astype(int) for side in (width, height))
        beyond = beyond_reach(scene.cameras, i, np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2) + 0.5)
        allowed = np.ones(GRID**2, dtype=bool)
        if scene.masks is not None and beyond.any():
            allowed = scene.masks.image(i, (width, height))[np.ix_(y, x)].ravel()
        strayed, used = strayed + (beyond & allowed).sum(), used + allowed.sum()
    if strayed <= BEYOND_SHARE * used:
        return []
    return [(f"warning: {100 * strayed / used:.1f} % of the pixels are where the lens leads no ray, and are learned along wrong ones; "
             "mask them (masks/), undistort the photos, or find the poses again with another --camera_model")]


def _range_warnings(scene, options, cameras):
    """Near and far of the views against the distances at which cameras see the sparse points."""
    points = scene.points[np.abs(scene.points).max(axis=1) <= scene.bound] if not options.contract else scene.points
    points = points[:: max(1, -(-len(points) // MOST_POINTS))].astype(np.float64)
    seen = _sees(cameras, points)
    distances = np.linalg.norm(points[None] - cameras.poses[:, None, :, 3], axis=2)
    sightings, lines = int(seen.sum()), []
    if sightings < FEWEST_POINTS:
        return ["warning: the cameras see next to none of the sparse points; are the poses those of these photos?"]
    too_near = (seen & (distances < cameras.near[:, None])).sum() / sightings
    too_far = (seen & (distances > cameras.far[:, None])).sum() / sightings
    if too_near > CUT_SHARE:
        by_photo = options.enable_cam_near_far and "min_near" not in options.given
        remedy = "leave out --enable_cam_near_far" if by_photo else f"try --min_near {np.quantile(distances[seen], NEAREST) / 2:.2g}"
        lines.append(f"warning: views start too far from the cameras: {100 * too_near:.0f} % of the sparse points they see are nearer; {remedy}")
    if too_far > CUT_SHARE:
        lines.append(f"warning: views end too early: {100 * too_far:.0f} % of the sparse points they see are farther; leave out --enable_cam_near_far")
    return lines


def _missed_warnings(scene, cameras):
    """Rays that go past the marched box, outside which nothing is learned. Where photos are masked or see through, there may be nothing to learn there."""
    if scene.masks is not None or scene.photos.channels == 4:
        return []
    low, high = scene.aabb[:3].astype(np.float64), scene.aabb[3:].astype(np.float64)
    missed = 1 - _share_that_meets(cameras, low, high)
    if missed <= MISSED_SHARE:
        return []
    fits = [bound for bound in BOUNDS if bound > scene.bound and 1 - _share_that_meets(cameras, -bound, bound) <= MISSED_SHARE]
    remedy = f"try --bound {fits[0]:g}" if fits else "try another --scale or --offset"
    return [f"warning: {100 * missed:.0f} % of the rays go past the box that is marched through, so what they show is not learned; {remedy}"]


def _share_that_meets(cameras, low, high):
    """Share of the rays through nine places of each picture that meet the box from `low` to `high`, [3] or a number each."""
    poses = cameras.poses.astype(np.float64)
    directions = spread_directions(cameras.intrinsics.astype(np.float64), cameras.sizes) @ poses[:, :, :3].transpose(0, 2, 1)
    directions = np.where(np.abs(directions) < 1e-12, 1e-12, directions)
    to_low, to_high = ((side - poses[:, None, :, 3]) / directions for side in (low, high))
    enter, leave = np.minimum(to_low, to_high).max(axis=2), np.maximum(to_low, to_high).min(axis=2)
    return float((leave > np.maximum(enter, 0)).mean())


def _unseen_warnings(scene, options, cameras):
    """Share of the marched box that no camera sees, estimated at random points of it."""
    low, high = scene.aabb[:3].astype(np.float64), scene.aabb[3:].astype(np.float64)
    probes = low + np.random.default_rng(0).random((PROBES, 3)) * (high - low)
    views = _sees(cameras, probes).sum(axis=0)
    unseen = (views == 0).mean()
    if unseen <= UNSEEN_SHARE:
        return []
    line = f"{100 * unseen:.0f} % of the cells that are marched through are seen by no camera"
    if options.mark_untrained:
        return [f"{line} and stay closed (--mark_untrained)"]
    return [f"warning: {line} and may fill with fog; " + ("try --mark_untrained" if options.cuda_ray else "try -O, which closes them")]


def _sees(cameras, points):
    """[n,p] bool: whether camera i has point j in its picture."""
    views = zip(cameras.poses.astype(np.float64), cameras.intrinsics, cameras.sizes, strict=True)
    return np.stack([in_picture(*view, points) for view in views])
