"""Reader of COLMAP scenes: a sparse model beside a folder `images` (and, for `--downscale N`, `images_N`), or beside the photos themselves."""

import os
from itertools import pairwise

import numpy as np

from nerf.errors import UserError
from nerf.scene.cameras import FISHEYE, OPENCV_TO_OPENGL, PERSPECTIVE
from nerf.scene.capture import Capture
from nerf.scene.colmap_model import model_kind, numbered_models, read_model
from nerf.scene.folder import listing, photo_files
from nerf.scene.masks import named_masks
from nerf.scene.photo_places import photo_places

MODEL_FOLDERS = ("sparse/0", "colmap_sparse/0", "colmap", "sparse", "colmap/sparse/0")


def find_model(root):
    """The folder of the sparse model of the scene in folder `root`, or None. Of several that COLMAP left side by side, the largest."""
    return next((folder for _, folder in _found_models(root)), None)


def _found_models(root):
    """(images registered, folder) of the sparse models at the first of MODEL_FOLDERS, the largest first."""
    for name in MODEL_FOLDERS:
        place = root / name
        found = numbered_models(place.parent) if place.name == "0" else [(None, place)] * bool(model_kind(place))
        if found:
            return found
    return []


def read_colmap(root, options):
    """Capture of the COLMAP scene in folder `root`, in file-name order.

    options: downscale. Raises UserError for a malformed model, and where no photo is found.
    """
    model, others, told = _largest_sound_model(root)
    registered = sorted(model.images, key=lambda image: image.name)
    twice = next((one.name for one, other in pairwise(registered) if one.name == other.name), None)
    if twice:
        raise UserError(f"{model.folder}: the model registers {twice} twice, so one of the two poses is wrong; run COLMAP again")
    names, places, moved = _photos(root, [image.name for image in registered], options.downscale)
    there = [os.path.isfile(place) for place in places]
    images, names, files = ([one for one, is_there in zip(every, there, strict=True) if is_there] for every in (registered, names, places))
    if not files:
        raise UserError(_no_photo(root, model, registered, places))
    cameras = [model.cameras[image.camera] for image in images]
    poses = np.stack([_camera_to_world(image) for image in images])
    intrinsics = np.array([_intrinsics(camera.parameters) for camera in cameras])
    distortion = np.array([[camera.parameters.get(key, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2")] for camera in cameras])
    masks, notes = named_masks(root, [image.name for image in images], options.downscale)
    return Capture(
        source=model.folder, files=files, names=[image.name for image in images],
        at_full_size=np.array([file == root / name for file, name in zip(files, names, strict=True)]),
        full_sizes=np.array([[camera.width, camera.height] for camera in cameras], dtype=np.float64),
        poses=poses, intrinsics=intrinsics, distortion=distortion,
        lens=np.array([FISHEYE if "FISHEYE" in camera.model else PERSPECTIVE for camera in cameras], dtype=np.int32),
        points=model.points if len(model.points) else None,
        seen=[_rows_of(image.point_ids, model.point_ids) for image in images] if len(model.points) else None,
        masks=masks, notes=[*_notes(root, model, cameras, files, [root / name for name in names], registered), *told, *_other_models(root, others), *moved, *notes])


def _largest_sound_model(root):
    """The largest model that can be read, the smaller ones as of _found_models, and notes. Raises UserError where none can."""
    models, first, notes = _found_models(root), None, []
    for i, (_, folder) in enumerate(models):
        try:
            return read_model(folder), models[i + 1 :], notes
        except UserError as error:
            first = first or error
            notes.append(f"warning: {folder.relative_to(root)} is passed over: {error}")
    raise first


def _photos(root, registered, downscale):
    """Paths below `root` of the photos with COLMAP's names `registered`, then places and notes as of photo_places.

    The names are paths below images/, or, where `root` itself was the photo folder, below that.
    """
    names = [f"images/{name}" for name in registered]
    found = names, *photo_places(root, names, downscale)
    if any(map(os.path.isfile, found[1])):
        return found
    at_root = registered, *photo_places(root, registered, downscale)
    return at_root if any(map(os.path.isfile, at_root[1])) else found


def _no_photo(root, model, registered, places):
    if not registered:
        return f"{model.folder}: the model registers no image, so COLMAP found no pose; take more overlapping photos and run it again"
    folder = root / places[0].relative_to(root).parts[0]
    smaller = [entry.name for entry in root.glob("images_*") if entry.is_dir() and entry.name[7:].isdecimal()]
    if not folder.is_dir() and smaller:
        return f"{root}: there is no folder {folder.name}, but {smaller[0]}; pass --downscale {smaller[0][7:]}"
    held = f"which holds {listing(folder)}" if folder.is_dir() else "which does not exist"
    return (f"{root}: none of the {len(registered)} photos that {model.folder} registers is in {folder}, {held} "
            f"(looked for {registered[0].name} and others); put the photos there")


def _camera_to_world(image):
    """[3,4] float64 with OpenGL camera axes, from COLMAP's world-to-camera quaternion and translation with OpenCV axes."""
    w, x, y, z = image.quaternion
    world_to_camera = np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]])
    position = -world_to_camera.T @ image.translation
    return np.column_stack([world_to_camera.T * OPENCV_TO_OPENGL, position])


def _intrinsics(parameters):
    return [parameters.get("fx", parameters.get("f")), parameters.get("fy", parameters.get("f")), parameters["cx"], parameters["cy"]]


def _rows_of(ids, sorted_ids):
    """Rows of `sorted_ids` where `ids` are; those that are in no row are left out."""
    rows = np.minimum(np.searchsorted(sorted_ids, ids), len(sorted_ids) - 1)
    return np.unique(rows[sorted_ids[rows] == ids])


def _notes(root, model, cameras, files, places, registered):
    models = ", ".join(sorted({camera.model for camera in cameras}))
    count = len({id(camera) for camera in cameras})
    notes = [f"{len(files)} photos, {count} camera{'s' * (count > 1)} ({models}) and {len(model.points)} sparse points from {model.folder}"]
    missing = len(registered) - len(files)
    if missing:
        notes.append(f"{missing} of {len(registered)} registered photos are missing in {root} and were skipped")
    whole = {place if place.parent.is_dir() else file for place, file in zip(places, files, strict=True)}  # images_N may hold but some
    beside = {photo for folder in {photo.parent for photo in whole} for photo in photo_files(folder)}
    if unregistered := len(beside - whole):
        notes.append(f"{unregistered} photos beside these are not registered in {model.folder.relative_to(root)} and were skipped")
    if model.dropped:
        notes.append(f"{model.dropped} sparse points with NaN or inf coordinates were dropped")
    return notes


def _other_models(root, others):
    if not others:
        return []
    named = ", ".join(f"{folder.relative_to(root)} with {count}" for count, folder in others)
    return [(f"warning: there are several models, as COLMAP leaves where it cannot join all photos: the largest is taken, and not {named}; "
             "photos that show parts of both would join them")]
