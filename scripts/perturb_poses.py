"""Makes a copy of a scene whose training photos have slightly wrong poses, to measure what --refine_poses makes of them.

    python scripts/perturb_poses.py SCENE OUT --degrees 0.5 --translation 0.01

The scene is one of transforms.json (or transforms_train.json). Photos and all other files become symbolic links, but for COLMAP's models, whose right poses a
reader would prefer. Held-out photos keep their poses. The errors are normal, with the given root mean square over the photos; the same arguments give the
same files. To compare with the right poses, make a copy with --degrees 0 --translation 0, which is read in the same way.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from nerf.errors import UserError, tells_user_errors
from nerf.files import write_file
from nerf.options import parse_options
from nerf.scene.cameras import rigid_poses
from nerf.scene.capture import split_views
from nerf.scene.colmap import MODEL_FOLDERS
from nerf.scene.folder import scene_folder
from nerf.scene.normalise import world_transform
from nerf.scene.transforms import read_transforms

FILES = ("transforms.json", "transforms_train.json")  # that may hold training photos, as the reader looks for them
MODELS = {Path(folder).parts[0] for folder in MODEL_FOLDERS}


def parse(argv=None):
    parser = argparse.ArgumentParser(description="Copy a transforms.json scene with noise on the poses of its training photos.")
    parser.add_argument("scene", metavar="SCENE", help="folder with transforms.json or transforms_train.json")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--degrees", type=size, default=0.5, help="root mean square angle of the wrong turns (0.5)")
    parser.add_argument("--translation", type=size, default=0.01, help="root mean square length of the wrong shifts, in world units as the trainer scales them (0.01)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    return parser.parse_args(argv)


def size(text):
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no size: give a number from 0")
    return value


def perturb(scene, out, degrees, translation, seed):
    """Writes the copy; returns how many poses were changed. Raises UserError."""
    root = scene_folder(scene)
    file = next((root / name for name in FILES if (root / name).is_file()), None)
    if file is None:
        raise UserError(f"{root}: neither of {' and '.join(FILES)} is here; COLMAP scenes cannot be perturbed.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and not an empty folder; choose another name.")
    options = parse_options([str(root), "--data_format", "nerf"])
    capture = read_transforms(root, options)
    poses, _ = rigid_poses(capture.poses, capture.names)
    world, _ = world_transform(capture, poses, options)
    train, *_ = split_views(len(poses), capture.splits, options.train_split)
    names = {capture.names[i] for i in train}
    head = json.loads(file.read_text(encoding="utf-8"))
    random, changed = np.random.default_rng(seed), 0
    for frame in head["frames"]:
        turn, shift = random.normal(size=(2, 3)) / math.sqrt(3)
        if Path(frame["file_path"].replace("\\", "/")).as_posix() not in names:
            continue
        matrix = np.array(frame["transform_matrix"], dtype=np.float64)
        matrix[:3, :3] = cv2.Rodrigues(np.radians(degrees) * turn)[0] @ matrix[:3, :3]
        matrix[:3, 3] += translation / world.scale * shift
        frame["transform_matrix"] = matrix.tolist()
        changed += 1
    out.mkdir(parents=True, exist_ok=True)
    for entry in root.iterdir():
        if entry.name != file.name and entry.name not in MODELS:
            (out / entry.name).symlink_to(entry.resolve())
    write_file(out / file.name, (json.dumps(head, indent=1) + "\n").encode())
    read_transforms(out, options)  # photos that SCENE names outside itself are missed here
    return changed


@tells_user_errors
def main():
    arguments = parse()
    changed = perturb(arguments.scene, arguments.out, arguments.degrees, arguments.translation, arguments.seed)
    print(f"{arguments.out}: the poses of {changed} training photos are off by about {arguments.degrees:g} degrees and {arguments.translation:g} world units.")


if __name__ == "__main__":
    sys.exit(main())
