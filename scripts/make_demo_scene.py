"""Makes the demo scene: photo-like pictures of a still life, ray-traced here, with cameras and sparse points in COLMAP's format.

    python scripts/make_demo_scene.py data/demo

The same arguments give the same files, whatever the number of processes.
"""

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2

sys.path.insert(0, str(Path(__file__).resolve().parent))
from demo_scene.colmap_model import write_model
from demo_scene.photos import photograph
from demo_scene.sparse_points import sample_points
from demo_scene.still_life import still_life
from demo_scene.views import LENSES, Lens, two_rings


def parse(argv=None):
    parser = argparse.ArgumentParser(description="Make a small photo-like scene in COLMAP format with an own ray tracer.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write: OUT/images and OUT/sparse/0")
    parser.add_argument("--views", type=number_from(8), default=48, help="number of pictures (48)")
    parser.add_argument("--width", type=number_from(16), default=200, help="width of a picture in pixels (200)")
    parser.add_argument("--height", type=number_from(16), default=150, help="height of a picture in pixels (150)")
    parser.add_argument("--seed", type=number_from(0), default=0, help="textures, camera jitter and sparse points follow from it (0)")
    parser.add_argument("--lens", choices=LENSES, default="PINHOLE", help="camera model; OPENCV bends the picture a little (PINHOLE)")
    parser.add_argument("--points", type=number_from(100), default=3000, help="surface points to sample for the sparse model (3000)")
    parser.add_argument("--processes", type=number_from(1), default=os.cpu_count() or 1, help="processes to work with (all cores)")
    return parser.parse_args(argv)


def number_from(least):
    def number(text):
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is too small: give {least} or more")
        return value

    return number


def make_picture(seed, view, folder):
    ok, encoded = cv2.imencode(".png", photograph(still_life(seed), view)[..., ::-1])
    if not ok:
        raise RuntimeError(f"{view.name} could not be encoded as PNG")
    (folder / view.name).write_bytes(encoded.tobytes())


def main(argv=None):
    options = parse(argv)
    start = time.perf_counter()
    pictures, model = options.out / "images", options.out / "sparse" / "0"
    try:
        pictures.mkdir(parents=True, exist_ok=True)
        (model / "points3D.bin").unlink(missing_ok=True)
        for old in pictures.glob("view_*.png"):
            old.unlink()
    except OSError as error:
        sys.exit(f"{options.out} cannot be written ({error.strerror}): choose another folder.")
    lens = Lens(options.lens, options.width, options.height)
    views = two_rings(options.views, lens, options.seed)
    workers = min(options.processes, options.views)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(make_picture, options.seed, view, pictures) for view in views]
        points = sample_points(still_life(options.seed), views, options.points, options.seed)
        for job in jobs:
            job.result()
    write_model(model, lens, views, points)
    seconds = time.perf_counter() - start
    print(f"{options.out}: {len(views)} pictures of {lens.width}x{lens.height}, {len(points.tracks)} sparse points, {seconds:.0f} s.")


if __name__ == "__main__":
    main()
