"""One transforms file: its head, and its frames with their photos, masks, poses and lenses."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerf.errors import UserError
from nerf.scene.cameras import FISHEYE, PERSPECTIVE
from nerf.scene.folder import PHOTO_ENDINGS, reduced
from nerf.scene.photo_places import photo_places

SINGLE = "transforms.json"
SPLITS = ("transforms_train.json", "transforms_val.json", "transforms_test.json")
LENSES = {"SIMPLE_PINHOLE": PERSPECTIVE, "PINHOLE": PERSPECTIVE, "SIMPLE_RADIAL": PERSPECTIVE, "RADIAL": PERSPECTIVE, "OPENCV": PERSPECTIVE,
          "OPENCV_FISHEYE": FISHEYE, "SIMPLE_RADIAL_FISHEYE": FISHEYE, "RADIAL_FISHEYE": FISHEYE}
# Marks of lenses in instant-ngp's files that rays here do not follow.
OTHER_LENSES = ("ftheta_p0", "equirectangular", "latlong")
REMEDY = "correct the file or export it again"


@dataclass(frozen=True)
class Frame:
    """One view whose photo exists. name: its path as the file states it; file: the photo to load; full: the same photo at full size;
    mask: Path or None; matrix [3,4] float64 camera-to-world; lookup(key, default): a number from the frame, else from the head of its file."""

    name: str
    file: Path
    full: Path
    mask: Path | None
    matrix: np.ndarray
    lens: int
    lookup: object


def read_file(file, downscale):
    """What one file says, its frames whose photos exist, in its order, and notes. Only a file of held-out views may have no such frame."""
    head = _load(file)
    names = [_name(file, entry, i) for i, entry in enumerate(head["frames"])]
    full = [_full_size(file.parent, name) for name in names]
    places, notes = photo_places(file.parent, full, downscale)
    frames = [_frame(file, head, i, *photo, downscale) for i, photo in enumerate(zip(names, places, full, strict=True))]
    kept = [frame for frame in frames if os.path.isfile(frame.file)]
    if not kept and file.name in SPLITS[1:]:
        return head, kept, [f"warning: {file.name}: none of its {len(frames)} photos is there (looked for {frames[0].file} and others), so it is left out"]
    if not kept:
        raise UserError(f"{file}: none of the {len(frames)} photos that it names is there (looked for {frames[0].file} and others); "
                        "put the photos there or correct file_path")
    bare = next((frame for frame in kept if frame.mask and not os.path.isfile(frame.mask)), None)
    if bare:
        raise UserError(f"{file}: the mask_path of {bare.name} names {bare.mask}, which is not there; put it there or remove mask_path")
    if len(kept) < len(frames):
        notes.append(f"{file.name}: {len(frames) - len(kept)} of {len(frames)} frames have no photo and were skipped")
    if "applied_transform" in head:
        notes.append(f"{file.name}: applied_transform is ignored, as the poses already contain it")
    if any(entry.get("depth_file_path") for entry in head["frames"]):
        notes.append(f"{file.name}: depth_file_path is ignored, as colours alone are learned from")
    return head, kept, notes


def _load(file):
    try:
        head = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); {REMEDY}") from None
    except RecursionError:
        raise UserError(f"{file}: is nested too deeply to be a transforms file; {REMEDY}") from None
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}); {REMEDY}") from None
    if not isinstance(head, dict) or not isinstance(head.get("frames"), list) or not head["frames"]:
        raise UserError(f"{file}: has no list 'frames' with views in it; {REMEDY}")
    return head


def _name(file, entry, i):
    """The path of frame i's photo, as the file states it."""
    if not isinstance(entry, dict) or not isinstance(entry.get("file_path"), str) or not entry["file_path"]:
        raise UserError(f"{file}: frame {i} has no file_path; {REMEDY}")
    return posix(entry["file_path"])


def _frame(file, head, i, name, photo, full, downscale):
    entry = head["frames"][i]
    where = f"{file}: frame {i} ({entry['file_path']})"

    def lookup(key, default=None):
        value = next((source[key] for source in (entry, head) if source.get(key) is not None), None)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
            raise UserError(f"{where}: {key} is {value!r:.40}, which is no sensible number; {REMEDY}")
        return float(value)

    return Frame(name, photo, file.parent / full, _mask(where, file, entry, downscale), _matrix(where, entry), _lens(where, head, entry), lookup)


def posix(name):
    return Path(name.replace("\\", "/")).as_posix()


def _mask(where, file, entry, downscale):
    name = entry.get("mask_path")
    if not name:
        return None
    if not isinstance(name, str):
        raise UserError(f"{where}: mask_path is {name!r:.40}, which is no path; {REMEDY}")
    return reduced(file.parent, posix(name), downscale)


def _full_size(folder, name):
    """The path of the photo called `name`, below `folder` where it is there. NeRF-synthetic files leave the extension out, most often .png."""
    path = Path(name)
    path = path.relative_to(folder) if path.is_relative_to(folder) else path
    if os.path.isfile(folder / path):
        return path
    return next((longer for ending in (".png", *PHOTO_ENDINGS) if os.path.isfile(folder / (longer := Path(f"{path}{ending}")))), path)


def _matrix(where, entry):
    try:
        matrix = np.array(entry.get("transform_matrix"), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.zeros(0)
    if matrix.shape not in ((4, 4), (3, 4)):
        raise UserError(f"{where}: transform_matrix is not a 4x4 (or 3x4) matrix of numbers; {REMEDY}")
    return matrix[:3]


def _lens(where, head, entry):
    fisheye = any(source.get("is_fisheye") is True for source in (entry, head))
    stated = [source["camera_model"] for source in (entry, head) if source.get("camera_model") is not None]
    model = [*stated, "OPENCV_FISHEYE" if fisheye else "OPENCV"][0]
    other = next((key for key in OTHER_LENSES for source in (entry, head) if source.get(key)), None)
    if other or not isinstance(model, str) or model.upper() not in LENSES:
        said = f"the lens {other}" if other else f"camera_model {model!r:.40}"
        raise UserError(f"{where}: {said} is not supported (supported: {', '.join(LENSES)}); "
                        "undistort the photos, or cut panoramas into plain photos, first")
    return LENSES[model.upper()]
