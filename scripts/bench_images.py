"""Memory and time of a training step for each place where photos can be kept (--image_cache).

    python scripts/bench_images.py SCENE --caches cpu disk --steps 300 -- -O --hsm
    python scripts/bench_images.py --make SCENE --photos 200 --megapixels 12     # a scene of large photos, to measure

Each cache is measured in a process of its own, training as main.py does. Peak memory is that of the process; pages of files that the system keeps are not in it.
A scene that is made has few different photos under many names: what matters here is their number and size.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from nerf.errors import UserError

CACHES = ("gpu", "cpu", "disk")
DIFFERENT = 8  # photos that are really made
WARM = 50  # steps before the clock starts: recording, first pool


def parse(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description="Memory and time of a training step for each --image_cache.")
    parser.add_argument("scene", type=Path, metavar="SCENE", help="folder of the scene")
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=CACHES, help="what to measure (all)")
    parser.add_argument("--steps", type=int, default=300, help="steps to time (300)")
    parser.add_argument("--make", action="store_true", help="make SCENE instead")
    parser.add_argument("--photos", type=int, default=200, help="with --make, how many (200)")
    parser.add_argument("--megapixels", type=float, default=12.0, help="with --make, their size (12)")
    arguments = parser.parse_args(argv[:split])
    arguments.flags = argv[split + 1 :]
    return arguments


def make(root, photos, megapixels):
    """Writes a transforms.json scene: cameras in a ring that look at the centre, photos of smooth noise."""
    width = round(math.sqrt(megapixels * 1e6 * 4 / 3))
    height, focal = round(width * 3 / 4), 1.2 * width
    folder, random, frames = root / "images", np.random.default_rng(0), []
    folder.mkdir(parents=True)
    for i in range(photos):
        name = folder / f"{i:05d}.jpg"
        if i < DIFFERENT:
            picture = cv2.resize(random.integers(0, 256, (30, 40, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(name), np.clip(picture + random.normal(0, 4, picture.shape).astype(np.float32), 0, 255).astype(np.uint8))
        else:
            os.link(folder / f"{i % DIFFERENT:05d}.jpg", name)
        angle = 2 * math.pi * i / photos
        back, right = np.array([math.cos(angle), math.sin(angle), 0.3]) / math.hypot(1, 0.3), np.array([-math.sin(angle), math.cos(angle), 0])
        matrix = np.eye(4)
        matrix[:3] = np.column_stack([right, np.cross(back, right), back, 3 * back])
        frames.append({"file_path": f"images/{name.name}", "transform_matrix": matrix.tolist()})
    head = {"fl_x": focal, "fl_y": focal, "cx": width / 2, "cy": height / 2, "w": width, "h": height, "frames": frames}
    (root / "transforms.json").write_text(json.dumps(head))


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


def main():
    arguments = parse()
    if arguments.make:
        make(arguments.scene, arguments.photos, arguments.megapixels)
        return 0
    if len(arguments.caches) == 1:
        try:
            print(json.dumps(measure(arguments.scene, arguments.caches[0], arguments.steps, arguments.flags)))
        except UserError as error:
            print(json.dumps({"refused": str(error)}))
        return 0
    for cache in arguments.caches:
        command = [sys.executable, __file__, str(arguments.scene), "--caches", cache, "--steps", str(arguments.steps), "--", *arguments.flags]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print(f"{cache:5}", done.stdout.splitlines()[-1], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
