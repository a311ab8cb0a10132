"""Capture: what a reader of one format hands over, in the units and pixels of its files, before anything is scaled or decoded."""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np

from nerf.scene.cameras import spread_directions

HOLD_OUT_EVERY = 8
DEPTH_STEPS = 6


@dataclass(frozen=True)
class Capture:
    """n registered views whose photos exist.

    source: the file or folder that the poses are from; files, names [n]: where each photo lies, and what to call it;
    at_full_size [n] bool: False where the photo comes from an images_N folder, already reduced;
    full_sizes [n,2] float64: the width and height that `intrinsics` belong to;
    poses [n,3,4] float64 camera-to-world with OpenGL camera axes, in file units;
    intrinsics [n,4] float64, distortion [n,6] float64 and lens [n] int32 as in Cameras;
    points [p,3] float64 sparse points or None, and seen: for each view the rows of `points` that it observes, or None;
    splits: train, val, test index arrays (int64), or None for holding out every 8th view;
    depths [n,2] float64: the least and greatest depth along the optical axis that each view is stated to see, or None;
    region [2,3] float64: the least and greatest corner of the box that is stated to hold the scene, or None;
    masks [n]: Path or None for each photo, zero where it must not be used, or None for no masks;
    synthetic: the world frame is meant as it is (object at the origin, z up) and must not be turned or recentred;
    framed: what matters is in the unit ball about the file's origin, so that the scene is turned and no more;
    notes: what was found and skipped.
    """

    source: Path
    files: list
    names: list
    at_full_size: np.ndarray
    full_sizes: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray
    distortion: np.ndarray
    lens: np.ndarray
    points: np.ndarray | None = None
    seen: list | None = None
    splits: tuple | None = None
    depths: np.ndarray | None = None
    region: np.ndarray | None = None
    masks: list | None = None
    synthetic: bool = False
    framed: bool = False
    notes: list = field(default_factory=list)


@dataclass(frozen=True)
class Landmarks:
    """points [p,3] float64 by which a scene is placed and bounded, in file units or the world; noun: what to call them."""

    points: np.ndarray
    noun: str


def landmarks(capture, poses):
    """Landmarks of a Capture with poses [n,3,4]: its sparse points; else the corners of its stated region; else points spread over each
    view's stated depths; else None.

    The spread is even in 1 / depth, as the parallax is that depths are found by.
    """
    if capture.points is not None:
        return Landmarks(capture.points, "sparse point")
    if capture.region is not None:
        return Landmarks(np.array(list(product(*capture.region.T))), "cube corner")
    if capture.depths is None:
        return None
    near, far = 1 / capture.depths.T
    share = np.linspace(0, 1, DEPTH_STEPS)
    depth = 1 / ((1 - share) * near[:, None] + share * far[:, None])
    local = spread_directions(capture.intrinsics, capture.full_sizes)[:, None] * depth[:, :, None, None]
    world = local.reshape(len(poses), -1, 3) @ poses[:, :, :3].transpose(0, 2, 1) + poses[:, None, :, 3]
    return Landmarks(world.reshape(-1, 3), "depth point")


def split_views(count, splits, train_split):
    """Index arrays (train, val, test), int64.

    Without given splits every 8th view, counted from the first, is validation and test, as published Mip-NeRF 360 protocols do.
    train_split 'trainval' also trains on the validation views and 'all' on every view; validation stays what it was.
    """
    everything = np.arange(count, dtype=np.int64)
    if splits is None:
        val = everything[::HOLD_OUT_EVERY]
        splits = np.setdiff1d(everything, val), val, val
    train, val, test = splits
    if train_split == "trainval":
        train = np.union1d(train, val)
    elif train_split == "all":
        train = everything
    return train, val, test
