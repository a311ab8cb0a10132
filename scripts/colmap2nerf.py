"""Makes a scene that trains of a video or a folder of photos: frames, camera poses by COLMAP, transforms.json and a report.

    python scripts/colmap2nerf.py --video FILE --run_colmap
    python scripts/colmap2nerf.py --images DIR --run_colmap

Nothing is asked and nothing replaced without --overwrite; what is made appears in the scene folder when all of it is finished.
"""

import argparse
import math
import shlex
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
from nerf.errors import UserError
from nerf.scene.colmap import MODEL_FOLDERS, find_model, read_colmap
from nerf.scene.colmap_model import model_kind
from nerf.scene.colmap_records import PARAMETERS
from sfm import place
from sfm.frames import extract_frames
from sfm.photos import cameras_of, find_masks, find_photos, masks_for_colmap
from sfm.picture import draw_poses
from sfm.reconstruct import (
    MATCHERS,
    attempts,
    choose_colmap,
    feature_counts,
    reconstruct,
)
from sfm.report import advice, make_report, read_points, report_text, write_report
from sfm.transforms_file import POINTS, write_transforms
from sfm.undistort import undistort_masks, undistort_photos
from sfm.work import Features, Work

DESCRIPTION = ["transforms.json", POINTS, "report.json", "report.txt", "poses.png"]
MASKS = "masks"
RESERVED = ("..", place.IMAGES, MASKS, "sparse", "undistorted", "colmap.log", *DESCRIPTION)
LONGEST_ON_GPU, LONGEST_ON_CPU = 3200, 1600  # pixels; on a CPU more takes minutes a hundred photos and changes the poses little


def parse(argv=None):
    parser = argparse.ArgumentParser(description="Make a scene that trains of a video or a folder of photos, with COLMAP.", allow_abbrev=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--video", type=Path, metavar="FILE", help="take frames of this video; the scene is made beside it")
    source.add_argument("--images", type=Path, metavar="DIR", help="take these photos; the scene is the folder around DIR if that is called images, else DIR_scene")
    parser.add_argument("--out", type=Path, metavar="SCENE", help="make the scene in this folder instead")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run made")
    parser.add_argument("--run_colmap", action="store_true", help="find the poses; without it, frames alone are taken of a video, and photos need a model already")
    parser.add_argument("--colmap", choices=("auto", "binary", "pycolmap"), default="auto", help="the installed program, or the Python package (auto: what is there, rather one that uses a GPU)")
    parser.add_argument("--colmap_matcher", choices=MATCHERS, default="auto",
                        help="which photos to compare (auto: by the kind and number; retrieval: those that look alike, without a vocabulary file)")
    parser.add_argument("--vocab_tree", type=Path, metavar="FILE", help="vocabulary tree for --colmap_matcher vocab_tree")
    parser.add_argument("--camera_model", choices=list(PARAMETERS), default="OPENCV", help="lens (OPENCV; OPENCV_FISHEYE for fisheyes)")
    parser.add_argument("--max_image_size", type=positive(int), metavar="N", help=f"look for features in photos of at most N pixels a side ({LONGEST_ON_GPU}, or {LONGEST_ON_CPU} on a CPU)")
    parser.add_argument("--estimate_affine_shape", action="store_true", help="slower features for photos taken from far apart, on the CPU")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="masks NAME.png of the photos' sizes, black where to look away (SCENE/masks, if there)")
    parser.add_argument("--undistort", action="store_true", help="also make SCENE/undistorted, a scene without lens distortion")
    parser.add_argument("--video_fps", type=positive(float), default=3.0, metavar="N", help="frames a second (3)")
    parser.add_argument("--time_slice", type=time_slice, metavar="T1,T2", help="take this part of the video, in seconds")
    parser.add_argument("--skip_early", type=whole, default=0, metavar="N", help="skip the first N photos")
    parser.add_argument("--hold", type=int, default=8, metavar="N", help="name every N-th view as a test view in transforms.json (8; 0: none)")
    parser.add_argument("--dynamic", action="store_true", help="give each view its time, from 0 to 1, in transforms.json")
    parser.add_argument("--colmap_text", type=plain_name, metavar="NAME", help="with --run_colmap also write the model as text to SCENE/NAME; without, read it from there")
    parser.add_argument("--colmap_db", type=plain_name, default="colmap.db", metavar="NAME", help="the database's name in SCENE (colmap.db)")
    return parser.parse_args(argv)


def positive(kind):
    def number(text):
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not above zero")
        return value

    return number


def whole(text):
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below zero")
    return value


def plain_name(text):
    if not text or Path(text).name != text or text in RESERVED:
        raise argparse.ArgumentTypeError(f"{text} is not a name for a file of its own: give one without folders, other than {', '.join(RESERVED)}")
    return text


def time_slice(text):
    start, _, end = text.partition(",")
    start, end = float(start), float(end)
    if not 0 <= start < end < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no part of a video: give two times in seconds, the earlier first, such as 2.5,10")
    return start, end


def run(options):
    """Does what the command line asks for. Raises UserError."""
    scene = place.scene_folder(options.out, options.video, options.images)
    finish, made = (capture, outputs(options)) if options.run_colmap else (take_frames, []) if options.video else (convert, DESCRIPTION)
    place.refuse_to_overwrite(scene, [*made, *([place.IMAGES] if options.video else [])], options.overwrite)
    if options.video:
        place.refuse_foreign_images(scene)
    else:
        place.refuse_to_link(scene, place.IMAGES, options.images, options.overwrite)
    if options.masks:
        place.refuse_to_link(scene, MASKS, options.masks, options.overwrite)
    if options.colmap_matcher == "vocab_tree" and not (options.vocab_tree and options.vocab_tree.is_file()):
        raise UserError(f"--vocab_tree {options.vocab_tree}: no such file; --colmap_matcher vocab_tree needs one, retrieval does not.")
    if options.masks and options.video:
        raise UserError(f"--masks {options.masks}: masks belong to frames, which are not there yet; take the frames first (without --run_colmap), "
                        "make the masks, and go on with --images.")
    finish(options, scene)


def outputs(options):
    """Names of what COLMAP's poses bring into the scene folder, photos apart."""
    optional = [options.colmap_text] if options.colmap_text else []
    return ["sparse", options.colmap_db, *DESCRIPTION, *optional, *(["undistorted"] if options.undistort else [])]


def take_frames(options, scene):
    """--video alone: the frames, for someone who wants to look at them or mask them before going on."""
    with place.workroom(scene) as room:
        photos, facts = frames_of(options, room)
        place.move_in(room, scene, [place.IMAGES])
    print(*facts["notes"], f"{len(photos)} frames are in {scene / place.IMAGES}; find their poses with --images {shlex.quote(str(scene / place.IMAGES))} --run_colmap.", sep="\n")


def capture(options, scene):
    """Photos or a video, through COLMAP, to a scene."""
    colmap = choose_colmap(options.colmap)
    if options.colmap_matcher not in ("auto", "retrieval") and not colmap.has_matcher(options.colmap_matcher):
        raise UserError(f"--colmap_matcher {options.colmap_matcher}: {colmap.name} has none of this kind; pass another, or another --colmap.")
    with place.workroom(scene) as room:
        if options.video:
            photos, facts = frames_of(options, room)
            folder, masks = room / place.IMAGES, {}
        else:
            photos, facts = find_photos(options.images, options.skip_early), {}
            folder, masks = options.images.resolve(), masks_of(options, scene, photos)
            place.link(room, place.IMAGES, folder)
        (scene / "colmap.log").unlink(missing_ok=True)
        work = Work(room, folder, masks_for_colmap(room / "colmap_masks", photos, masks) if masks else None, scene / "colmap.log")
        use_gpu = colmap.has_gpu and not options.estimate_affine_shape
        features = Features(options.camera_model, options.estimate_affine_shape,
                            options.max_image_size or (LONGEST_ON_GPU if use_gpu else LONGEST_ON_CPU), use_gpu)
        groups = [[photo.name for photo in photos]] if options.video else cameras_of(photos)
        plan = attempts(options.colmap_matcher, len(photos), bool(options.video))
        made = reconstruct(colmap, work, groups, features, plan, say, options.vocab_tree)
        (room / "sparse").mkdir()
        shutil.move(made.model, room / "sparse" / "0")
        facts |= {"colmap": colmap.name, "gpu": use_gpu, "affine": options.estimate_affine_shape, "matchers": made.matchers, "models": made.sizes,
                  "minutes": made.minutes, "camera_model": options.camera_model}
        if options.colmap_text:
            (room / options.colmap_text).mkdir()
            colmap.write_text(work, room / "sparse" / "0", room / options.colmap_text)
        found = describe(room, scene, photos, masks, options, facts, feature_counts(work.database))
        if options.undistort:
            undistort_photos(colmap, work, room / "sparse" / "0", room / "undistorted")
            without_lens(room / "undistorted", found, masks, options)
        if work.database.name != options.colmap_db:
            work.database.rename(room / options.colmap_db)
        place.move_in(room, scene, [*([place.IMAGES] if options.video else []), *outputs(options)])
        link_in(options, scene, masks)
    print(f"The scene is ready: python main.py {shlex.quote(str(scene / 'undistorted' if options.undistort else scene))} -O --hsm")


def convert(options, scene):
    """--images without --run_colmap: transforms.json and the report of a model that is there."""
    photos = find_photos(options.images, options.skip_early)
    masks = masks_of(options, scene, photos)
    theirs = find_model(scene)
    text = scene / (options.colmap_text or "colmap_text")
    model = theirs if theirs and not options.colmap_text else text if model_kind(text) else None
    if model is None:
        looked_for = [text.name] if options.colmap_text else [*MODEL_FOLDERS, text.name]
        raise UserError(f"{scene}: no COLMAP model in it (looked for {', '.join(looked_for)}); pass --run_colmap to make one.")
    parts = [*DESCRIPTION]
    with place.workroom(scene) as room:
        place.link(room, place.IMAGES, options.images)
        shutil.copytree(model, room / "sparse" / "0")
        if model != theirs:  # where main.py looks
            place.refuse_to_overwrite(scene, ["sparse"], options.overwrite)
            parts.append("sparse")
        describe(room, scene, photos, masks, options, {}, None)
        place.move_in(room, scene, [part for part in parts if (room / part).exists()])  # no points, no file of points
        link_in(options, scene, masks)
    print(f"transforms.json is in {scene}.")


def link_in(options, scene, masks):
    """The photos and masks that are elsewhere appear in the scene as links."""
    if options.images:
        place.link(scene, place.IMAGES, options.images)
    if masks:
        place.link(scene, MASKS, masks_folder(options, scene))


def frames_of(options, room):
    """The video's frames in room/images: Photos, and what the report says of them."""
    folder = room / place.IMAGES
    folder.mkdir()
    say(f"frames: the sharpest of each 1/{options.video_fps:g} s of {options.video} ...")
    frames = extract_frames(options.video, folder, options.video_fps, options.time_slice)
    notes = [f"ffmpeg complained about {options.video}, which may be damaged: {frames.complaint}"] if frames.complaint else []
    try:
        photos = find_photos(folder, options.skip_early)
    except UserError:
        raise UserError(f"--video {options.video}: {frames.kept} frame{'s' * (frames.kept != 1)} at --video_fps {options.video_fps:g} "
                        "cannot make a scene; give a longer video, or more frames a second.") from None
    return photos, {"frames": {"kept": frames.kept, "looked_at": frames.looked_at}, "notes": notes}


def masks_folder(options, scene):
    """Where masks are: as given, else in the scene."""
    return options.masks or scene / MASKS


def masks_of(options, scene, photos):
    """Photo name -> mask, nothing where there are no masks."""
    folder = masks_folder(options, scene)
    return find_masks(folder, photos) if options.masks or folder.is_dir() else {}


def describe(room, scene, photos, masks, options, facts, features):
    """Writes transforms.json, the report and the picture for the model in `room`, there; returns its Capture."""
    found = read_colmap(room, SimpleNamespace(downscale=1))
    names = [photo.name for photo in photos]
    notes = facts.pop("notes", [])
    turned = sum(photo.turned for photo in photos)
    if turned:
        notes.append(f"{turned} photos are stored turned (EXIF orientation): they are used as they are stored")
    if masks:
        notes.append(f"{len(masks)} of {len(photos)} photos have a mask")
    points = read_points(room / "sparse" / "0")
    report = make_report(found, points, names, notes=notes, masks=len(masks), **facts)
    report["advice"] = advice(report, features)
    times = {name: i / len(names) for i, name in enumerate(names)} if options.dynamic else None
    inside = {name: f"{MASKS}/{file.relative_to(masks_folder(options, scene)).as_posix()}" for name, file in masks.items()}
    write_transforms(room, found, points, inside, options.hold, times)
    write_report(room, report)
    draw_poses(room / "poses.png", found, f"{scene.name}: {report['registered']} of {report['photos']} photos, mean reprojection error "
               f"{report['mean_reprojection_error']:.2f} pixels")
    print(report_text(report), flush=True)
    return found


def without_lens(folder, before, masks, options):
    """transforms.json and the masks of the undistorted scene."""
    after = read_colmap(folder, SimpleNamespace(downscale=1))
    made = undistort_masks(masks, before, after, folder / MASKS)
    write_transforms(folder, after, read_points(folder / "sparse" / "0"), {name: f"{MASKS}/{file}" for name, file in made.items()}, options.hold)


def say(text):
    print(text, flush=True)


def main(argv=None):
    options = parse(argv)
    try:
        run(options)
    except UserError as error:
        print(f"colmap2nerf.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"colmap2nerf.py: {error.filename or 'the scene folder'}: {error.strerror or error}; free some space, or pass another --out.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("colmap2nerf.py: interrupted; nothing was made.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that the working folder goes
    sys.exit(main())
