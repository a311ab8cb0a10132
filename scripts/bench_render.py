"""Frames a second of whole pictures, after a little training.

    python scripts/bench_render.py data/bonsai --steps 3000 --views 8 -- -O --bound 8

What follows `--` goes to the trainer. Held-out views are rendered in turn by the mean weights, as at the end of a run; a frame is done when its colours are on
the device. The time with the way to host memory is told beside it. Prints a JSON line, and writes it where --out says.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nerf.errors import tells_user_errors
from nerf.files import write_file
from nerf.options import parse_options, resolve
from nerf.scene import load_scene
from nerf.training import READ_INTERVAL, Trainer

WARM = 2  # pictures of each view before those that count


@tells_user_errors
def main():
    """Trains, renders and prints."""
    arguments = _parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="bench_render_") as folder:
        options = resolve(parse_options([arguments.scene, *arguments.trainer, "--workspace", folder]), device)
        trainer = Trainer(load_scene(options), options, device, Path(folder))
        with trainer.clock.running():
            while trainer.step.steps < arguments.steps:
                trainer.advance()
                if trainer.step.steps % READ_INTERVAL == 0:
                    trainer.follow()
        cameras, views = trainer.scene.cameras, [int(index) for index in trainer.scene.val[: arguments.views]]
        with trainer.ema.swapped():
            on_device = _median(lambda index: trainer.model.render.picture(cameras, index), views, arguments.rounds, device)
            on_host = _median(lambda index: trainer.model.render(cameras, index), views, arguments.rounds, device)
    width, height = cameras.sizes[views[0]].tolist()
    report = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads", "torch": torch.__version__,
        "date": date.today().isoformat(), "scene": Path(arguments.scene).name, "trainer": arguments.trainer, "steps": trainer.step.steps, "views": len(views),
        "width": width, "height": height, "ms": 1000 * on_device, "frames_per_second": 1 / on_device, "ms_to_host": 1000 * on_host,
    }  # fmt: skip
    print(json.dumps(report))
    if arguments.out:
        write_file(arguments.out, (json.dumps(report, indent=1) + "\n").encode())


def _parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene")
    parser.add_argument("--steps", type=int, default=3000, help="steps of training first (default: %(default)s)")
    parser.add_argument("--views", type=int, default=8, help="held-out views (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each is rendered (default: %(default)s)")
    parser.add_argument("--out", help="a JSON file")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments = parser.parse_args(sys.argv[1:split])
    arguments.trainer = sys.argv[split + 1 :]
    return arguments


def _median(render, views, rounds, device):
    """Median seconds of a picture."""
    times = []
    for turn in range(WARM + rounds):
        for index in views:
            _synchronise(device)
            started = time.perf_counter()
            render(index)
            _synchronise(device)
            if turn >= WARM:
                times.append(time.perf_counter() - started)
    return statistics.median(times)


def _synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
