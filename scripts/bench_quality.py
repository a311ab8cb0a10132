"""Held-out PSNR against training time for several sets of options, in turns on one machine.

    python scripts/bench_quality.py data/bonsai --at 10 20 40 60 --out bench --set "baseline: -O" --set "hsm: -O --hsm" -- --bound 8 --background random

What follows `--` goes to every run. Each run trains to the first time, is measured on all held-out photos, and the next set has its turn; so the
sets share whatever the machine is doing. Evaluation does not count as training time. Writes OUT/quality.json and OUT/quality.png.
"""

import argparse
import json
import sys
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nerf.options import parse_options, resolve
from nerf.scene import load_scene
from nerf.training import READ_INTERVAL, Trainer


def main():
    """Trains, measures, writes and prints."""
    arguments = _parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out = Path(arguments.out)
    runs = {}
    for text in arguments.set:
        name, _, flags = text.partition(":")
        for seed in arguments.seeds:
            argv = [arguments.scene, "--workspace", str(out / f"{name.strip()}_{seed}"), "--seed", str(seed), *flags.split(), *arguments.trainer]
            runs[f"{name.strip()}, seed {seed}"] = _trainer(argv, device)
    curves = {name: [] for name in runs}
    for seconds in arguments.at:
        for name, trainer in runs.items():
            curves[name].append(_train_to(trainer, seconds, out / name.replace(", seed ", "_") / f"at_{seconds:g}"))
            print(name, json.dumps(curves[name][-1]), flush=True)
    report = {"device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads", "torch": torch.__version__,
              "date": date.today().isoformat(), "scene": Path(arguments.scene).name, "sets": arguments.set, "trainer": arguments.trainer, "curves": curves}  # fmt: skip
    (out / "quality.json").write_text(json.dumps(report, indent=1) + "\n")
    _plot(report, out / "quality.png")
    print(_table(report))


def _parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene")
    parser.add_argument("--set", action="append", required=True, help='"NAME: FLAGS" of one kind of run; give several')
    parser.add_argument("--at", type=float, nargs="+", default=[10, 20, 40, 60], help="seconds of training at which to measure (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each set is run with each seed (default: %(default)s)")
    parser.add_argument("--out", required=True, help="folder for the numbers, the plot and the pictures")
    own, trainer = (sys.argv[1:], []) if "--" not in sys.argv else (sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :])
    arguments = parser.parse_args(own)
    arguments.trainer = trainer
    return arguments


def _trainer(argv, device):
    options = resolve(parse_options(argv), device)
    folder = Path(options.workspace)
    folder.mkdir(parents=True, exist_ok=True)
    return Trainer(load_scene(options), options, device, folder)


def _train_to(trainer, seconds, folder):
    """Trains until `seconds` of training and measures; one point of the curve."""
    with trainer.clock.running():
        while trainer.clock.seconds < seconds:
            trainer.advance()
            if trainer.step.steps % READ_INTERVAL == 0:
                trainer.follow()
    result = trainer.evaluate(folder, pictures=1)
    return {"seconds": round(trainer.clock.seconds, 3), "steps": trainer.step.steps, "psnr": result["psnr"], "ssim": result["ssim"], "photos": result["count"]}


def _plot(report, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), constrained_layout=True)
    for name, points in report["curves"].items():
        axes.plot([point["seconds"] for point in points], [point["psnr"] for point in points], marker="o", label=name)
    axes.set(xlabel="seconds of training", ylabel="held-out PSNR (dB)", title=f"{report['scene']}, {report['device']}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def _table(report):
    lines = [f"{report['scene']}, {report['device']}, torch {report['torch']}, {report['date']}"]
    for name, points in report["curves"].items():
        lines.append(name + ": " + "; ".join(f"{p['seconds']:.0f} s {p['psnr']:.2f} dB ({p['steps']} steps)" for p in points))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
