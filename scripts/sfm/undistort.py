"""Undistorted copies of photos, for programs that know no lens. Ours honours the lens and does not need them."""

import shutil

import cv2
import numpy as np

from nerf.errors import UserError
from nerf.files import write_file
from nerf.scene.cameras import FISHEYE
from sfm.work import ColmapError


def undistort_photos(colmap, work, model, folder):
    """Makes folder/images and folder/sparse/0. Raises UserError where COLMAP fails."""
    raw = work.folder / "undistorting"
    raw.mkdir()
    try:
        colmap.undistort(work, model, raw)
    except ColmapError as error:
        raise UserError(f"--undistort: {error}; see {work.log}.") from None
    (folder / "sparse").mkdir(parents=True)
    shutil.move(raw / "images", folder / "images")
    shutil.move(raw / "sparse", folder / "sparse" / "0")
    shutil.rmtree(raw)


def undistort_masks(masks, before, after, folder):
    """Undistorts masks as COLMAP did the photos, into `folder`; pixels that come from outside the photo are masked.

    masks: photo name -> file; before, after: the Captures of the photos and of their undistorted copies. Returns photo name -> path in `folder`.
    """
    row, made = {name: i for i, name in enumerate(before.names)}, {}
    for j, name in enumerate(after.names):
        if name not in masks:
            continue
        i = row[name]
        mask = cv2.imdecode(np.fromfile(masks[name], np.uint8), cv2.IMREAD_GRAYSCALE)
        arguments = (_matrix(before.intrinsics[i]), _distortion(before, i), np.eye(3), _matrix(after.intrinsics[j]),
                     tuple(after.full_sizes[j].astype(int).tolist()), cv2.CV_32FC1)
        lookup = cv2.fisheye.initUndistortRectifyMap if before.lens[i] == FISHEYE else cv2.initUndistortRectifyMap
        _, encoded = cv2.imencode(".png", cv2.remap(mask, *lookup(*arguments), cv2.INTER_NEAREST))
        made[name] = f"{name}.png"
        write_file(folder / made[name], encoded.tobytes())
    return made


def _matrix(intrinsics):
    fx, fy, cx, cy = intrinsics
    # COLMAP's pixel centres are at +0.5, OpenCV's at whole numbers.
    return np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])


def _distortion(capture, i):
    k1, k2, k3, k4, p1, p2 = capture.distortion[i]
    return np.array([k1, k2, k3, k4] if capture.lens[i] == FISHEYE else [k1, k2, p1, p2, k3])
