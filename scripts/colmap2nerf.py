"""Makes a scene that trains of a video or a folder of photos: frames, camera poses by COLMAP, transforms.json and a report.

    python scripts/colmap2nerf.py --video FILE --run_colmap
    python scripts/colmap2nerf.py --images DIR --run_colmap

Nothing is asked and nothing replaced without --overwrite; what is made appears in the scene folder when all of it is finished.
"""

import shlex
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
from nerf.errors import UserError
from nerf.scene.capture import HOLD_OUT_EVERY
from nerf.scene.colmap import MODEL_FOLDERS, find_model, read_colmap
from nerf.scene.colmap_model import model_kind
from sfm import place
from sfm.arguments import LONGEST_ON_CPU, LONGEST_ON_GPU, parse
from sfm.frames import extract_frames
from sfm.photos import cameras_of, find_masks, find_photos, masks_for_colmap
from sfm.picture import draw_poses
from sfm.place import DESCRIPTION, MASKS
from sfm.reconstruct import attempts, choose_colmap, feature_counts, reconstruct
from sfm.report import advice, make_report, read_points, report_text, write_report
from sfm.transforms_file import write_transforms
from sfm.undistort import undistort_masks, undistort_photos
from sfm.work import Features, Work


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
    print(f"The scene is ready: {train_command(scene / 'undistorted' if options.undistort else scene, options.hold)}")


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
    print(f"transforms.json is in {scene}: {train_command(scene, options.hold)}")


def train_command(scene, hold):
    """How to train on the scene that is ready. By itself main.py reads the model, which knows of no --hold, and holds out every 8th view."""
    form = "" if hold in (0, HOLD_OUT_EVERY) else "--data_format nerf "
    return f"python main.py {shlex.quote(str(scene))} {form}-O --hsm"


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
