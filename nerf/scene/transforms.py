"""Reader of transforms.json in its three dialects: NeRF-synthetic (a file a split, camera_angle_x), instant-ngp (one file, one lens)
and nerfstudio (a lens a frame, camera_model)."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerf.errors import UserError
from nerf.scene.cameras import FISHEYE, PERSPECTIVE
from nerf.scene.capture import Capture
from nerf.scene.folder import listing, reduced
from nerf.scene.photos import read_headers

SINGLE = "transforms.json"
SPLITS = ("transforms_train.json", "transforms_val.json", "transforms_test.json")
LENSES = {"SIMPLE_PINHOLE": PERSPECTIVE, "PINHOLE": PERSPECTIVE, "SIMPLE_RADIAL": PERSPECTIVE, "RADIAL": PERSPECTIVE, "OPENCV": PERSPECTIVE,
          "OPENCV_FISHEYE": FISHEYE}
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
REMEDY = "correct the file or export it again"


@dataclass(frozen=True)
class Frame:
    """One view whose photo exists. name: its path as the file states it; file: the photo to load; full: the same photo at full size;
    matrix [3,4] float64 camera-to-world; lookup(key, default): a number from the frame, else from the head of its file."""

    name: str
    file: Path
    full: Path
    matrix: np.ndarray
    lens: int
    lookup: object


def read_transforms(root, options):
    """Capture of the transforms scene in folder `root`. Raises UserError for a missing or malformed file, or where no photo is found."""
    if (root / SINGLE).is_file():
        frames, notes = _read_file(root / SINGLE, options.downscale)
        return _capture(root / SINGLE, sorted(frames, key=lambda frame: frame.name), None, notes)
    if not (root / SPLITS[0]).is_file():
        remedy = "pass --data_format colmap for a COLMAP scene" if any(root.glob("*sparse*")) else "pass the folder that has one of them"
        raise UserError(f"{root}: neither {SINGLE} nor {SPLITS[0]} is here (the folder holds {listing(root)}); {remedy}")
    read = [_read_file(root / name, options.downscale) if (root / name).is_file() else ([], []) for name in SPLITS]
    return _capture(root, [frame for frames, _ in read for frame in frames], _given_splits([len(frames) for frames, _ in read]),
                    [note for _, notes in read for note in notes])


def _given_splits(counts):
    """Index arrays of train, val and test laid end to end; a missing val or test is the other one, and both missing leave nothing given."""
    train, val, test = np.split(np.arange(sum(counts), dtype=np.int64), np.cumsum(counts)[:2])
    if not len(val) and not len(test):
        return None
    return train, val if len(val) else test, test if len(test) else val


def _capture(source, frames, splits, notes):
    full_sizes = np.array(_full_sizes(frames)).reshape(-1, 2)
    distortion = np.array([[frame.lookup(key, 0.0) for key in DISTORTION] for frame in frames])
    # Renderers write undistorted split files about an object at the origin; split files with a lens come from colmap2nerf and real photos.
    synthetic = source.is_dir() and not distortion.any()
    dialect = "NeRF-synthetic" if synthetic else "split files of real photos" if source.is_dir() else "single file"
    return Capture(
        source=source, files=[frame.file for frame in frames], names=[frame.name for frame in frames],
        at_full_size=np.array([frame.file == frame.full for frame in frames]), full_sizes=full_sizes,
        poses=np.stack([frame.matrix for frame in frames]),
        intrinsics=np.array([_intrinsics(source, frame, *size) for frame, size in zip(frames, full_sizes, strict=True)]),
        distortion=distortion, lens=np.array([frame.lens for frame in frames], dtype=np.int32),
        splits=splits, synthetic=synthetic, notes=[f"{len(frames)} photos from {source} ({dialect})", *notes])


def _read_file(file, downscale):
    """Frames of one file whose photos exist, in its order, and notes."""
    head = _load(file)
    frames = [_frame(file, head, entry, i, downscale) for i, entry in enumerate(head["frames"])]
    kept = [frame for frame in frames if os.path.isfile(frame.file)]
    if not kept:
        raise UserError(f"{file}: none of the {len(frames)} photos that it names is there (looked for {frames[0].file} and others); "
                        "put the photos there or correct file_path")
    notes = []
    if len(kept) < len(frames):
        notes.append(f"{file.name}: {len(frames) - len(kept)} of {len(frames)} frames have no photo and were skipped")
    if "applied_transform" in head:
        notes.append(f"{file.name}: applied_transform is ignored, as the poses already contain it")
    if any("mask_path" in entry for entry in head["frames"]):
        notes.append(f"{file.name}: mask_path is ignored, so masked pixels are trained on")
    return kept, notes


def _load(file):
    try:
        head = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); {REMEDY}") from None
    except RecursionError:
        raise UserError(f"{file}: is nested too deeply to be a transforms file; {REMEDY}") from None
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}); {REMEDY}") from None
    if not isinstance(head, dict) or not isinstance(head.get("frames"), list) or not head["frames"]:
        raise UserError(f"{file}: has no list 'frames' with views in it; {REMEDY}")
    return head


def _frame(file, head, entry, i, downscale):
    where = f"{file}: frame {i}"
    if not isinstance(entry, dict) or not isinstance(entry.get("file_path"), str) or not entry["file_path"]:
        raise UserError(f"{where} has no file_path; {REMEDY}")
    where += f" ({entry['file_path']})"

    def lookup(key, default=None):
        value = entry.get(key, head.get(key))
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
            raise UserError(f"{where}: {key} is {value!r:.40}, which is no sensible number; {REMEDY}")
        return float(value)

    relative = Path(entry["file_path"].replace("\\", "/"))
    full, photo = _with_png(file.parent / relative), _with_png(reduced(file.parent, relative, downscale))
    return Frame(relative.as_posix(), photo, full, _matrix(where, entry), _lens(where, head, entry), lookup)


def _with_png(photo):
    """NeRF-synthetic files leave the extension out."""
    longer = Path(f"{photo}.png")
    return longer if not os.path.isfile(photo) and os.path.isfile(longer) else photo


def _matrix(where, entry):
    try:
        matrix = np.array(entry.get("transform_matrix"), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.zeros(0)
    if matrix.shape not in ((4, 4), (3, 4)):
        raise UserError(f"{where}: transform_matrix is not a 4x4 (or 3x4) matrix of numbers; {REMEDY}")
    return matrix[:3]


def _lens(where, head, entry):
    model = entry.get("camera_model", head.get("camera_model", "OPENCV_FISHEYE" if head.get("is_fisheye") is True else "OPENCV"))
    if not isinstance(model, str) or model not in LENSES:
        raise UserError(f"{where}: camera_model {model!r:.40} is not supported (supported: {', '.join(LENSES)}); "
                        "undistort the photos first")
    return LENSES[model]


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
    fx = frame.lookup("fl_x", _focal(width, frame.lookup("camera_angle_x")))
    fy = frame.lookup("fl_y", _focal(height, frame.lookup("camera_angle_y")))
    if fx is None and fy is None:
        raise UserError(f"{source}: {frame.name} has no focal length (fl_x or camera_angle_x); {REMEDY}")
    return fx or fy, fy or fx, frame.lookup("cx", width / 2), frame.lookup("cy", height / 2)


def _focal(side, angle):
    return None if angle is None or not 0 < angle < math.pi else side / 2 / math.tan(angle / 2)
