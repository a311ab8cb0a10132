"""Scene: the one object that the rest of the program gets from disk."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerf.errors import UserError
from nerf.scene.cameras import (
    Cameras,
    check_intrinsics,
    in_picture,
    rigid_poses,
)
from nerf.scene.capture import Landmarks, landmarks, split_views
from nerf.scene.extent import (
    no_distances,
    overlap_distance,
    scene_bound,
    scene_box,
    seen_distances,
    stated_distances,
    view_limits,
)
from nerf.scene.folder import scene_folder
from nerf.scene.formats import read_capture
from nerf.scene.masks import Masks, load_masks
from nerf.scene.normalise import Similarity, world_transform
from nerf.scene.photos import Photos, load_photos, read_headers, target_sizes

# With fewer photos to train on there is no parallax to learn depth from.
FEWEST = 2

# Width to height of photo and camera model may differ by this much through rounding of sizes; beyond it something was cropped or turned.
ASPECT_TOLERANCE = 0.02

# Of a cloud without word of which view sees which point, so many points are looked for in all pictures: 2,000 photos then take some seconds.
MOST_POINTS = 20_000


@dataclass(frozen=True)
class Scene:
    """n photos with their cameras, in the world.

    names [n]; points [p,3] float32 sparse points or None; train, val, test: int64 index arrays; scale: world units a file unit;
    bound: half the side of the cube that the field and its grid fill (2 where space is contracted); aabb [6] float32 = least x, y, z,
    greatest x, y, z: the box in the world outside which nothing is sampled; notes: what was found, skipped and scaled;
    masks: which pixels may be learned from and measured, or None for all; world: how the file's coordinates became the world's.
    """

    name: str
    root: Path
    cameras: Cameras
    photos: Photos
    names: list[str]
    points: np.ndarray | None
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    scale: float
    bound: float
    aabb: np.ndarray
    notes: list[str]
    masks: Masks | None = None
    world: Similarity | None = None


def load_scene(options):
    """Read the scene that `options` describe, decode its photos, and place it in the world.

    options: path, data_format ('auto' or one of nerf.scene.formats.FORMATS), downscale, scale (-1 = automatic), offset [3], bound (None = automatic),
    min_near (None = automatic), enable_cam_center, enable_cam_near_far, train_split ('train', 'trainval' or 'all'), contract, image_cache, vis_pose, workspace.
    Prints the memory that the photos will take before it decodes them. Raises UserError for whatever is wrong with the input.
    """
    if options.downscale < 1:
        raise UserError(f"--downscale {options.downscale}: photos can be reduced by 1 (not at all), 2, 3, ... only")
    root = scene_folder(options.path)
    capture = read_capture(root, options)
    poses, intrinsics, notes = _checked(capture)
    train, val, test = _splits(capture, options.train_split)
    headers = read_headers(capture.files)
    found, turning = _as_the_camera_stood(headers, capture.full_sizes)
    sizes = target_sizes(capture.files, found, capture.at_full_size, options.downscale)
    world, placing = world_transform(capture, poses, options)
    marks = landmarks(capture, poses)
    marks = marks and Landmarks(world.points(marks.points), marks.noun)
    poses = world.poses(poses)
    points = None if capture.points is None else world.points(capture.points)
    bound, why = scene_bound(marks, capture, options)
    overlap = overlap_distance(poses, capture.intrinsics, capture.full_sizes) if points is None and capture.depths is None else None
    near, far, limits = view_limits(_distances(capture, points, poses, world.scale), options, overlap)
    cameras = Cameras(
        poses=poses.astype(np.float32),
        intrinsics=(intrinsics * np.tile(sizes / capture.full_sizes, 2)).astype(np.float32),
        distortion=capture.distortion.astype(np.float32), lens=capture.lens, sizes=sizes.astype(np.int32), near=near, far=far)
    masks, masking = load_masks(capture.masks, capture.files, found, sizes)
    notes += [_sizes_note(sizes, capture.full_sizes), *turning, *masking, *_aspect_notes(capture.names, sizes, capture.full_sizes),
              *placing, why, *limits, f"{len(train)} photos to train on, {len(val)} to validate, {len(test)} to test"]
    scene = Scene(
        name=root.name, root=root, cameras=cameras, photos=load_photos(capture.files, sizes, headers.alpha, options.image_cache), names=_printable(capture.names),
        points=None if points is None else points.astype(np.float32), train=train, val=val, test=test, scale=world.scale, bound=bound,
        aabb=scene_box(marks and marks.points, poses[:, :, 3], bound, options), notes=_printable([*capture.notes, *notes]), masks=masks, world=world)
    if options.vis_pose:
        from nerf.scene.preview import (
            write_preview,  # here, because its drawing libraries take a second to import
        )

        scene.notes.append(write_preview(scene, Path(options.workspace)))
    return scene


def _checked(capture):
    labels = [f"{capture.source}: {name}" for name in capture.names]
    poses, rescaled = rigid_poses(capture.poses, labels)
    check_intrinsics(capture.intrinsics, capture.distortion, labels)
    notes = [f"{rescaled} poses had a scale in their rotation, which was divided out"] if rescaled else []
    return poses, capture.intrinsics, notes


def _splits(capture, train_split):
    train, val, test = split_views(len(capture.files), capture.splits, train_split)
    if len(train) < FEWEST and train_split != "all":
        raise UserError(f"{capture.source}: of {len(capture.files)} usable photo(s), {len(train)} are left to train on when the others are held out; "
                        "add photos (a scene takes some twenty or more) or pass --train_split all")
    return train, val, test


def _printable(texts):
    """Texts without the lone surrogates that stand for bytes of a file name in another encoding: those can be neither printed nor written."""
    return [text.encode("utf-8", "backslashreplace").decode() for text in texts]


def _as_the_camera_stood(headers, full_sizes):
    """Sizes [n,2] of the photos, those turned that fit their camera only when turned as EXIF says, and notes."""
    aspect, wanted = np.divide(*headers.sizes.T), np.divide(*full_sizes.T)
    turn = headers.sideways & (np.abs(aspect / wanted - 1) > ASPECT_TOLERANCE) & (np.abs(1 / aspect / wanted - 1) <= ASPECT_TOLERANCE)
    left = int((headers.turned & ~turn).sum())
    notes = []
    if turn.any():
        notes.append(f"{int(turn.sum())} photos were turned as their EXIF data say, because only so they fit their camera")
    if left:
        notes.append(f"warning: {left} photos are to be turned by their EXIF data, but were left as they are stored, to which poses usually belong; "
                     "if pictures come out wrong, turn the photos themselves and find the poses anew")
    return np.where(turn[:, None], headers.sizes[:, ::-1], headers.sizes), notes


def _distances(capture, points, poses, scale):
    """Distances by the sparse points that each view is told to see, or has in its picture; else by stated depths; poses and points in the world."""
    if points is None:
        return no_distances(len(poses)) if capture.depths is None else stated_distances(capture, scale)
    seen = capture.seen
    if seen is None:
        points = points[:: -(-len(points) // MOST_POINTS)]
        views = zip(poses, capture.intrinsics, capture.full_sizes, strict=True)
        seen = (np.flatnonzero(in_picture(*view, points)) for view in views)
    return seen_distances(points, seen, poses[:, :, 3])


def _sizes_note(sizes, full_sizes):
    kinds, counts = np.unique(sizes, axis=0, return_counts=True)
    width, height = kinds[np.argmax(counts)]
    note = f"photos of {width}x{height} pixels" if len(kinds) == 1 else f"photos of {len(kinds)} sizes, mostly {width}x{height} pixels"
    ratio = sizes / full_sizes
    if np.abs(ratio - 1).max() > 1e-6:
        note += f"; intrinsics scaled by {ratio.min():.4g}" + f" to {ratio.max():.4g}" * bool(np.ptp(ratio) > 1e-4) + " to fit"
    return note


def _aspect_notes(names, sizes, full_sizes):
    odd = np.abs(np.divide(*sizes.T) / np.divide(*full_sizes.T) - 1) > ASPECT_TOLERANCE
    if not odd.any():
        return []
    first = int(np.argmax(odd))
    photo, model = ("{:g}x{:g}".format(*size[first]) for size in (sizes, full_sizes))
    return [(f"warning: {int(odd.sum())} photos have another shape than their camera ({names[first]}: {photo} against {model}); "
            "were they cropped or turned after the poses were found?")]
