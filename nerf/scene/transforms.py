"""Reader of transforms.json in its three dialects: NeRF-synthetic (a file a split, camera_angle_x), instant-ngp (one file, one lens)
and nerfstudio (a lens a frame, camera_model)."""

import math
import os
from itertools import chain

import numpy as np

from nerf.errors import UserError
from nerf.scene.cameras import LARGEST, rigid_poses
from nerf.scene.capture import Capture
from nerf.scene.masks import named_masks
from nerf.scene.normalise import SYNTHETIC_SCALE
from nerf.scene.photos import read_headers
from nerf.scene.ply import parse_ply
from nerf.scene.transforms_file import (
    REMEDY,
    SINGLE,
    SPLITS,
    posix,
    read_file,
)

DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
# How instant-ngp places a file in the cube that it trains in, unless the file says otherwise (NERF_SCALE of its nerf_loader.h).
NGP_SCALE, NGP_OFFSET = 0.33, 0.5


def find_transforms(root):
    """The transforms file of the scene in folder `root` (of several, that of the training photos), or None."""
    return next((root / name for name in (SINGLE, SPLITS[0]) if (root / name).is_file()), None)


def read_transforms(root, options):
    """Capture of the transforms scene in folder `root`.

    options: downscale. Raises UserError for a missing or malformed file, or where no photo to train on is found: files of held-out views
    may be there for their cameras alone.
    """
    file = root / SINGLE
    if file.is_file():
        head, frames, notes = read_file(file, options.downscale)
        frames, splits, left_out = _named_splits(file, head, sorted(frames, key=lambda frame: frame.name))
        return _capture(root, file, options, head, frames, splits, notes + left_out)
    read = [read_file(root / name, options.downscale) if (root / name).is_file() else ({}, [], []) for name in SPLITS]
    heads, frames, notes = zip(*read, strict=True)
    return _capture(root, root, options, heads[0], [*chain(*frames)], _given_splits([len(part) for part in frames]), [*chain(*notes)])


def _named_splits(file, head, frames):
    """The frames that nerfstudio's train_filenames, val_filenames and test_filenames name, their index arrays, and notes."""
    lists = [head.get(f"{split}_filenames") or [] for split in ("train", "val", "test")]
    if not any(lists):
        return frames, None, []
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise UserError(f"{file}: train_filenames, val_filenames and test_filenames are no lists of names; {REMEDY}")
    lists = [{posix(name) for name in names} for names in lists]
    stated = {posix(entry["file_path"]) for entry in head["frames"]}
    strange = sorted(set().union(*lists) - stated)
    if strange:
        raise UserError(f"{file}: {strange[0][:200]} is in one of train_filenames, val_filenames and test_filenames, but in no frame; {REMEDY}")
    if not lists[0]:  # train on what is not held out
        lists[0] = stated - lists[1] - lists[2]
    named = set().union(*lists)
    kept = [frame for frame in frames if frame.name in named]
    train, val, test = ([i for i, frame in enumerate(kept) if frame.name in names] for names in lists)
    notes = [f"photos are split as {file.name} says"]
    if len(kept) < len(frames):
        notes.append(f"{file.name}: {len(frames) - len(kept)} frames are in none of its splits and were skipped")
    if not kept:
        raise UserError(f"{file}: no photo of its splits is there; put the photos there or remove train_filenames, val_filenames and test_filenames")
    if not val and not test:
        return kept, None, notes
    return kept, tuple(np.array(part, dtype=np.int64) for part in (train, val or test, test or val)), notes


def _points(file, head):
    """Points [p,3] of the file that ply_file_path names, or None, and notes."""
    name = head.get("ply_file_path")
    if not isinstance(name, str) or not os.path.isfile(file.parent / name):
        return None, [f"{file.name}: there is no ply_file_path {name!r:.80}"] * bool(name)
    try:
        points = parse_ply((file.parent / name).read_bytes())
    except (OSError, ValueError) as error:
        return None, [f"{name}: the points are left out ({error})"]
    points = points[(np.abs(points) < LARGEST).all(axis=1)]
    return (points if len(points) else None), [f"{len(points)} points from {name}"]


def _region(file, head):
    """The cube [2,3] in file units that instant-ngp's aabb_scale states, or None, and notes.

    instant-ngp takes a place x of the file to scale * x + offset and learns the cube of side aabb_scale about (0.5, 0.5, 0.5).
    """
    if head.get("aabb_scale") is None:
        return None, []
    try:
        side, scale = float(head["aabb_scale"]), float(head.get("scale", NGP_SCALE))
        offset = np.broadcast_to(np.array(head.get("offset", NGP_OFFSET), dtype=np.float64), 3)
    except (TypeError, ValueError, OverflowError):
        side = scale = offset = 0.0
    cube = (np.array([[-side], [side]]) / 2 + 0.5 - offset) / (scale or 1.0)
    if not (side > 0 and scale > 0 and (np.abs(cube) < LARGEST).all()):  # NaN compares false
        return None, [f"{file.name}: aabb_scale, scale and offset state no cube and are ignored"]
    return cube, [f"{file.name}: aabb_scale {side:g} states a cube of side {side / scale:.4g} in the file's units"]


def _given_splits(counts):
    """Index arrays of train, val and test laid end to end; a missing val or test is the other one, and both missing leave nothing given."""
    train, val, test = np.split(np.arange(sum(counts), dtype=np.int64), np.cumsum(counts)[:2])
    if not len(val) and not len(test):
        return None
    return train, val if len(val) else test, test if len(test) else val


def _capture(root, source, options, head, frames, splits, notes):
    full_sizes = np.array(_full_sizes(frames)).reshape(-1, 2)
    distortion = np.array([[frame.lookup(key, 0.0) for key in DISTORTION] for frame in frames])
    poses = np.stack([frame.matrix for frame in frames])
    file = find_transforms(root)
    points, told = _points(file, head)
    region, stated = _region(file, head)
    # What has points or a lens is a capture, of real photos or rendered as if. So is what says how large it is, unless it stands before nothing, as BlenderNeRF's objects do.
    bare = source.is_dir() and points is None and not distortion.any() and _is_of_an_object(poses, frames, source)
    synthetic = bare and (region is None or read_headers([frames[0].file]).alpha)
    if synthetic and region is not None:
        region, stated = None, [f"{file.name}: aabb_scale is left aside, as there is nothing around the object"]
    dialect = "NeRF-synthetic" if synthetic else "split files" if source.is_dir() else "single file"
    masks = [frame.mask for frame in frames]
    if not any(masks):
        masks, named = named_masks(root, [frame.name for frame in frames], options.downscale)
        notes = notes + named
    return Capture(
        source=source, files=[frame.file for frame in frames], names=[frame.name for frame in frames],
        at_full_size=np.array([frame.file == frame.full for frame in frames]), full_sizes=full_sizes, poses=poses,
        intrinsics=np.array([_intrinsics(source, frame, *size) for frame, size in zip(frames, full_sizes, strict=True)]),
        distortion=distortion, lens=np.array([frame.lens for frame in frames], dtype=np.int32),
        points=points, region=region, splits=splits, masks=masks, synthetic=synthetic,
        notes=[f"{len(frames)} photos from {source} ({dialect})", *notes, *told, *stated])


def _is_of_an_object(poses, frames, source):
    """Whether most cameras at poses [n,3,4] look from outside at what the usual cube of NeRF-synthetic scenes holds: an object at the origin."""
    rigid, _ = rigid_poses(poses, [f"{source}: {frame.name}" for frame in frames])
    back, positions, reach = rigid[:, :, 2], rigid[:, :, 3], 1 / SYNTHETIC_SCALE
    ahead = (positions * back).sum(axis=1)  # how far before the camera its axis passes the origin
    past = np.linalg.norm(positions - ahead[:, None] * back, axis=1)
    return np.median(ahead) > 0 and np.median(past) < reach < np.median(np.linalg.norm(positions, axis=1))


def _full_sizes(frames):
    """Width and height that each frame's intrinsics belong to: as stated, else those of the full-size photo."""
    stated = [(frame.lookup("w", 0.0), frame.lookup("h", 0.0)) for frame in frames]
    silent = [i for i, size in enumerate(stated) if min(size) < 1]
    photos = [frames[i].full if os.path.isfile(frames[i].full) else frames[i].file for i in silent]
    for i, size in zip(silent, read_headers(photos).sizes, strict=True):
        stated[i] = tuple(map(float, size))
    return stated


def _intrinsics(source, frame, width, height):
    """fx, fy, cx, cy; focal lengths not stated follow from the angles of view, and a missing fy is fx (square pixels)."""
    fx, fy = (_focal(frame, axis, side) for axis, side in (("x", width), ("y", height)))
    if fx is None and fy is None:
        raise UserError(f"{source}: {frame.name} has no focal length (fl_x, camera_angle_x or x_fov); {REMEDY}")
    return fy if fx is None else fx, fx if fy is None else fy, frame.lookup("cx", width / 2), frame.lookup("cy", height / 2)


def _focal(frame, axis, side):
    """The focal length that a frame states for `axis`, or None: in pixels, or as angle of view over `side` pixels (radians; x_fov: degrees)."""
    angle = frame.lookup(f"camera_angle_{axis}", math.radians(frame.lookup(f"{axis}_fov", 0.0)))
    return frame.lookup(f"fl_{axis}", side / 2 / math.tan(angle / 2) if 0 < angle < math.pi else None)
