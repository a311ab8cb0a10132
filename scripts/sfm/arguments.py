"""The command line of scripts/colmap2nerf.py."""

import argparse
import math
from pathlib import Path

from nerf.scene.capture import HOLD_OUT_EVERY
from nerf.scene.colmap_records import PARAMETERS
from sfm.place import DESCRIPTION, IMAGES, MASKS
from sfm.reconstruct import MATCHERS

RESERVED = ("..", IMAGES, MASKS, "sparse", "undistorted", "colmap.log", *DESCRIPTION)
# Of those that rays follow: a fit of FULL_OPENCV has terms that they do not, and COLMAP before 4 has no plain fisheyes.
CAMERA_MODELS = [model for model in PARAMETERS if model not in ("FULL_OPENCV", "SIMPLE_FISHEYE", "FISHEYE")]
LONGEST_ON_GPU, LONGEST_ON_CPU = 3200, 1600  # pixels; on a CPU more takes minutes a hundred photos and changes the poses little


def parse(argv=None):
    """The options of scripts/colmap2nerf.py."""
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
    parser.add_argument("--camera_model", choices=CAMERA_MODELS, default="OPENCV", help="lens (OPENCV; OPENCV_FISHEYE for fisheyes)")
    parser.add_argument("--max_image_size", type=positive(int), metavar="N", help=f"look for features in photos of at most N pixels a side ({LONGEST_ON_GPU}, or {LONGEST_ON_CPU} on a CPU)")
    parser.add_argument("--estimate_affine_shape", action="store_true", help="slower features for photos taken from far apart, on the CPU")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="masks NAME.png of the photos' sizes, black where to look away (SCENE/masks, if there)")
    parser.add_argument("--undistort", action="store_true", help="also make SCENE/undistorted, a scene without lens distortion")
    parser.add_argument("--video_fps", type=positive(float), default=3.0, metavar="N", help="frames a second (3)")
    parser.add_argument("--time_slice", type=time_slice, metavar="T1,T2", help="take this part of the video, in seconds")
    parser.add_argument("--skip_early", type=whole, default=0, metavar="N", help="skip the first N photos")
    parser.add_argument("--hold", type=whole, default=HOLD_OUT_EVERY, metavar="N",
                        help="name every N-th view as a test view in transforms.json, which main.py heeds with --data_format nerf "
                             "(8, which it holds out anyway; 0: name none)")
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
