"""transforms.json of a capture, as instant-ngp and nerfstudio read it, and its sparse points beside it."""

import json
import math

import numpy as np

from nerf.files import write_file
from nerf.scene.cameras import FISHEYE
from nerf.scene.extent import SHARE_INSIDE
from nerf.scene.normalise import Similarity, nearest_to_axes, upright
from nerf.scene.ply import coloured_ply
from nerf.scene.transforms import NGP_SCALE

POINTS = "sparse_pc.ply"  # nerfstudio's name for it
MEAN_RADIUS = 4.0  # of the cameras about what they look at: what instant-ngp's own script makes
LARGEST_CUBE = 128  # aabb_scale of instant-ngp is a power of two up to this


def write_transforms(folder, capture, points, masks, hold, times=None):
    """Writes the views of `capture` (a Capture, photos in `images`) to folder/transforms.json, and its points, if any, to folder/POINTS.

    points: sfm.report.SparsePoints; masks: photo name -> path of its mask relative to the folder; hold: every hold-th view is named as test and validation view, none
    where 0; times: photo name -> time in [0, 1), or None. The lens stands in the head where all views share it, else in each frame.
    """
    lenses = [_lens(capture, i) for i in range(len(capture.names))]
    shared = all(lens == lenses[0] for lens in lenses)
    world, frames = _framing(capture.poses), []
    poses, positions = world.poses(capture.poses), world.points(points.positions)
    for name, lens, pose in zip(capture.names, lenses, poses, strict=True):
        frame = {"file_path": f"images/{name}", **({} if shared else lens)}
        if name in masks:
            frame["mask_path"] = masks[name]
        if times is not None:
            frame["time"] = times[name]
        frames.append({**frame, "transform_matrix": [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]})
    paths = [frame["file_path"] for frame in frames]
    splits = {}
    if hold > 0:
        held = paths[::hold]
        splits = {"train_filenames": [path for i, path in enumerate(paths) if i % hold], "val_filenames": held, "test_filenames": held}
    cloud = {}
    if len(positions):
        write_file(folder / POINTS, coloured_ply(positions, points.colours))
        cloud = {"ply_file_path": POINTS}
    content = {**(lenses[0] if shared else {}), "aabb_scale": _cube(poses[:, :, 3], positions), **cloud, **splits, "frames": frames}
    write_file(folder / "transforms.json", (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape"))


def _lens(capture, i):
    (width, height), (fx, fy, cx, cy) = capture.full_sizes[i].tolist(), capture.intrinsics[i].tolist()
    k1, k2, k3, k4, p1, p2 = capture.distortion[i].tolist()
    fisheye = capture.lens[i] == FISHEYE
    bend = {"k1": k1, "k2": k2, "k3": k3, "k4": k4} if fisheye else {"k1": k1, "k2": k2, **({"k3": k3} if k3 else {}), "p1": p1, "p2": p2}
    return {"camera_model": "OPENCV_FISHEYE" if fisheye else "OPENCV", "camera_angle_x": 2 * math.atan(width / 2 / fx),
            "camera_angle_y": 2 * math.atan(height / 2 / fy), "fl_x": fx, "fl_y": fy, **bend, "cx": cx, "cy": cy, "w": int(width), "h": int(height)}


def _framing(poses):
    """The Similarity that puts up at +z, what cameras at poses [n,3,4] look at in the middle, and the cameras at MEAN_RADIUS about it on average."""
    rotation, _ = upright(poses)
    centre = nearest_to_axes(poses)
    if centre is None:
        centre = poses[:, :, 3].mean(axis=0)
    radius = np.linalg.norm(poses[:, :, 3] - centre, axis=1).mean()
    return Similarity(rotation, centre, MEAN_RADIUS / max(radius, 1e-9), np.zeros(3))


def _cube(cameras, points):
    """aabb_scale: the side, in units of instant-ngp, of the smallest cube about the origin that holds cameras [n,3] and nearly all points [p,3]."""
    reach = np.abs(cameras).max()
    if len(points):
        reach = max(reach, np.quantile(np.abs(points).max(axis=1), SHARE_INSIDE))
    return min(2 ** math.ceil(math.log2(max(2 * NGP_SCALE * reach, 1))), LARGEST_CUBE)
