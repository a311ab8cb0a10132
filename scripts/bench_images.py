"""Memory and time of a training step for each place where photos can be kept (--image_cache).

    python scripts/bench_images.py SCENE --caches cpu disk --steps 300 -- -O --hsm
    python scripts/bench_images.py --make LARGE --like SCENE --photos 200 --megapixels 12     # a scene of large photos, to measure

Each cache is measured in a process of its own, training as main.py does. Peak memory is that of the process; pages of files that the system keeps are not in it.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from nerf.errors import UserError, tells_user_errors
from nerf.files import writable, write_file
from nerf.scene import FISHEYE
from nerf.scene.folder import scene_folder
from nerf.scene.formats import read_capture
from nerf.scene.ply import coloured_ply

CACHES = ("gpu", "cpu", "disk")
DIFFERENT = 100  # photos that are really made
MOST_MEGAPIXELS = 500
NOISE = 4.0  # standard deviation, of 255 levels
WARM = 50  # steps before the clock starts: recording, first pool


def parse(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description="Memory and time of a training step for each --image_cache.")
    parser.add_argument("scene", type=Path, metavar="SCENE", help="folder of the scene")
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=CACHES, help="what to measure (all)")
    parser.add_argument("--steps", type=int, default=300, help="steps to time (300)")
    parser.add_argument("--make", action="store_true", help="make SCENE instead, of the photos of another")
    parser.add_argument("--like", type=Path, metavar="REAL", help="with --make, the other scene")
    parser.add_argument("--photos", type=int, default=200, help="with --make, how many (200)")
    parser.add_argument("--megapixels", type=float, default=12.0, help="with --make, their size (12)")
    arguments = parser.parse_args(argv[:split])
    if arguments.make != bool(arguments.like):
        parser.error("--make and --like belong together")
    if arguments.photos < 1 or not 0 < arguments.megapixels <= MOST_MEGAPIXELS:
        parser.error(f"--photos {arguments.photos} --megapixels {arguments.megapixels:g}: make at least one photo, of more than 0 and at most {MOST_MEGAPIXELS}")
    arguments.flags = argv[split + 1 :]
    return arguments


def make(root, like, photos, megapixels):
    """Writes a transforms.json scene of `photos` photos: those of the real scene `like` at another size, with its poses and lenses.

    Enlarged photos get the noise of a camera, which makes them as long to decode as photos of that size are. At most DIFFERENT of them are
    made; the others are links to these, which a reader takes for photos of their own. One is held out, as a CPU takes minutes to render it.
    """
    capture = read_capture(scene_folder(like), SimpleNamespace(data_format="auto", downscale=1))
    folder = root / "images"
    if folder.exists():
        raise UserError(f"{folder}: is there already; remove it or name another folder.")
    folder.mkdir(parents=True)
    chosen = np.linspace(0, len(capture.files) - 1, min(DIFFERENT, photos, len(capture.files))).astype(int)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lenses = list(pool.map(lambda k: _enlarge(capture, chosen[k], folder / f"{k:05d}.jpg", megapixels), range(len(chosen))))
    frames = []
    for i in range(photos):
        k = i % len(chosen)
        if i >= len(chosen):
            os.link(folder / f"{k:05d}.jpg", folder / f"{i:05d}.jpg")
        frames.append({"file_path": f"images/{i:05d}.jpg", **lenses[k], "transform_matrix": [*capture.poses[chosen[k]].tolist(), [0, 0, 0, 1]]})
    head = {"val_filenames": [frames[0]["file_path"]]}
    if capture.points is not None:
        write_file(root / "points.ply", coloured_ply(capture.points, np.zeros(capture.points.shape, dtype=np.uint8)))
        head["ply_file_path"] = "points.ply"
    (root / "transforms.json").write_text(json.dumps({**head, "frames": frames}))


def _enlarge(capture, i, file, megapixels):
    """Writes photo i of a Capture at another size; returns its lens as transforms.json has it."""
    picture = cv2.imread(str(capture.files[i]))
    if picture is None:
        raise UserError(f"{capture.files[i]}: the photo cannot be read; convert it to JPEG or PNG.")
    height, width = (round(side * math.sqrt(1e6 * megapixels / picture[..., 0].size)) for side in picture.shape[:2])
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(i).normal(0, NOISE, picture.shape[:2] + (1,)).astype(np.float32)
    if not cv2.imwrite(str(file), np.clip(picture + noise, 0, 255).astype(np.uint8)):
        raise OSError(f"{file} cannot be written")
    names = "fl_x", "fl_y", "cx", "cy", "k1", "k2", "k3", "k4", "p1", "p2"
    intrinsics = capture.intrinsics[i] * np.tile([width, height] / capture.full_sizes[i], 2)
    model = "OPENCV_FISHEYE" if capture.lens[i] == FISHEYE else "OPENCV"
    return {"camera_model": model, "w": width, "h": height, **dict(zip(names, [*intrinsics.tolist(), *capture.distortion[i].tolist()], strict=True))}


def measure(scene, cache, steps, flags):
    """Trains; a dictionary of what it took."""
    import tempfile

    import torch

    from main import choose_device
    from nerf.options import parse_options, resolve
    from nerf.scene import load_scene
    from nerf.training import Trainer

    options = parse_options([str(scene), "--image_cache", cache, *flags])
    device = choose_device(options.device)
    options = resolve(options, device)

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        trainer = Trainer(load_scene(options), options, device, Path(folder))
        loaded = time.perf_counter() - started
        for phase in (WARM, steps):
            wait()
            started = time.perf_counter()
            for _ in range(phase):
                trainer.advance()
                if trainer.step.steps % 16 == 0:
                    trainer.follow()
            wait()
        spent = time.perf_counter() - started
    gpu = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0
    return {"loading, s": round(loaded, 1), "ms a step": round(1000 * spent / steps, 3), "peak memory, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "GPU, MiB": round(gpu)}


@tells_user_errors
def main():
    arguments = parse()
    if arguments.make:
        with writable(arguments.scene):
            make(arguments.scene, arguments.like, arguments.photos, arguments.megapixels)
    elif len(arguments.caches) == 1:
        try:
            print(json.dumps(measure(arguments.scene, arguments.caches[0], arguments.steps, arguments.flags)))
        except UserError as error:
            print(json.dumps({"refused": str(error)}))
    else:
        for cache in arguments.caches:
            command = [sys.executable, __file__, str(arguments.scene), "--caches", cache, "--steps", str(arguments.steps), "--", *arguments.flags]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            print(f"{cache:5}", done.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    sys.exit(main())
