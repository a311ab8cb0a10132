"""Held-out quality against training time and steps for several sets of options, in turns on one machine.

    python scripts/bench_quality.py data/bonsai --at 10 20 40 60 --out bench --set "baseline: -O" --set "hsm: -O --hsm" -- --bound 8
    python scripts/bench_quality.py data/fox --at 20 --at_steps 2000 --seeds 0 1 2 --out bench --set "ngp: -O" --set "nerfacto: -O2"

What follows `--` goes to every run. Each run trains until it reaches one of the marks, seconds of training or steps, is measured on
held-out photos, and the next one has its turn; so all share whatever the machine is doing. Evaluation does not count as training time,
nor does what a process does once, such as loading kernels. Writes OUT/quality.json after each turn and OUT/quality.png at the end, and
prints a table of means over the seeds; ms a step and peak memory are those since the run's previous mark.
"""

import argparse
import json
import math
import sys
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nerf.errors import UserError, tells_user_errors
from nerf.files import write_file
from nerf.options import parse_options, prepare_workspace, resolve
from nerf.scene import load_scene
from nerf.training import READ_INTERVAL, Trainer
from quality_report import plot, summarise, table
from run_memory import RunMemory

DEFAULT_SECONDS = [10.0, 20.0, 40.0, 60.0]
WARM_STEPS = 20  # of a run of each set that is thrown away: more than one update of the occupancy grid, and a recorded step


class Mark(NamedTuple):
    """Where a run is measured: `value` seconds of training (unit "s") or that many steps (unit "steps")."""

    unit: str
    value: float

    def __str__(self):
        return f"{self.value:g} s" if self.unit == "s" else f"{self.value} steps"

    def reached(self, trainer):
        """Whether a trainer is there or beyond."""
        return (trainer.clock.seconds if self.unit == "s" else trainer.step.steps) >= self.value


@dataclass
class Run:
    """A set with a seed: its trainer, its memory, the marks it has yet to reach and the points of its curve."""

    name: str
    trainer: Trainer
    memory: RunMemory
    photos: np.ndarray
    marks: list
    points: list = field(default_factory=list)

    def turn(self):
        """Trains to the nearest mark and measures; adds a point for each mark that is reached by then, mostly one."""
        trainer = self.trainer
        steps, seconds = trainer.step.steps, trainer.clock.seconds
        self.memory.start()
        with trainer.clock.running():
            while not any(mark.reached(trainer) for mark in self.marks):
                trainer.advance()
                if trainer.step.steps % READ_INTERVAL == 0:
                    trainer.follow()
                if self.memory.stale():
                    with trainer.clock.paused():
                        self.memory.take()
        peak = self.memory.stop()
        point = {
            "seconds": round(trainer.clock.seconds, 3), "steps": trainer.step.steps,
            "ms_per_step": 1000 * (trainer.clock.seconds - seconds) / (trainer.step.steps - steps), "peak_memory_mib": peak,
        }  # fmt: skip
        reached = [mark for mark in self.marks if mark.reached(trainer)]
        result = trainer.evaluate(trainer.folder / f"at_{reached[0]}".replace(" ", "_"), self.photos, pictures=1)
        point |= {key: result[key] for key in ("psnr", "ssim", "lpips") if key in result} | {"photos": result["count"]}
        self.marks = [mark for mark in self.marks if mark not in reached]
        self.points += [{"mark": str(mark), **point} for mark in reached]
        return self.points[-len(reached) :]


@tells_user_errors
def main():
    """Trains, measures, writes and prints."""
    arguments = _parse()
    sets = _sets(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _measure(_build(sets, arguments, device), sets, arguments, device)


def _measure(runs, sets, arguments, device):
    out = Path(arguments.out)
    report = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__, "date": date.today().isoformat(), "scene": Path(arguments.scene).name,
        "sets": arguments.set, "seeds": arguments.seeds,
        "trainer": arguments.trainer, "marks": [str(mark) for mark in arguments.marks], "photos": len(runs[0].photos),
        "held_out": len(runs[0].trainer.scene.val), "curves": {run.name: run.points for run in runs},
    }  # fmt: skip
    while any(run.marks for run in runs):
        for run in runs:
            if run.marks:
                for point in run.turn():
                    print(run.name, json.dumps(point), flush=True)
                report["rows"] = summarise(report["curves"], list(sets), arguments.seeds, report["marks"])
                write_file(out / "quality.json", (json.dumps(report, indent=1) + "\n").encode())
    if any(mark.unit == "s" for mark in arguments.marks):
        plot(report, out / "quality.png")
    print(table(report))


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; --help explains the flags.")


def _parse():
    parser = _Parser(prog="bench_quality.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene")
    parser.add_argument("--set", action="append", required=True, help='"NAME: FLAGS" of one kind of run; give several')
    parser.add_argument("--at", type=float, nargs="+", default=[], help="seconds (default: 10 20 40 60, without --at_steps)")
    parser.add_argument("--at_steps", type=int, nargs="+", default=[], help="steps at which to measure")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each set is run with each seed (default: 0)")
    parser.add_argument("--photos", type=int, help="measure on this many held-out photos, evenly chosen (default: all)")
    parser.add_argument("--out", required=True, help="folder for the numbers, the plot and the pictures")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments = parser.parse_args(sys.argv[1:end])
    arguments.trainer = sys.argv[end + 1 :]
    if not arguments.at and not arguments.at_steps:
        arguments.at = DEFAULT_SECONDS
    for flag, values in (("--at", arguments.at), ("--at_steps", arguments.at_steps)):
        for value in values:
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{flag} {value:g}: a run can be measured at positive, finite times and steps only.")
    if len(set(arguments.seeds)) < len(arguments.seeds):
        raise UserError(f"--seeds {' '.join(map(str, arguments.seeds))}: name each seed once.")
    if arguments.photos is not None and arguments.photos < 1:
        raise UserError(f"--photos {arguments.photos}: measure on at least one photo.")
    given = ("s", arguments.at), ("steps", arguments.at_steps)
    arguments.marks = [Mark(unit, value) for unit, values in given for value in sorted(set(values))]
    return arguments


def _sets(arguments):
    """Name of each set -> Options for each seed, all of them checked."""
    sets = {}
    for text in arguments.set:
        name, colon, flags = text.partition(":")
        name = name.strip()
        if not colon or not name or "/" in name:
            raise UserError(f'--set "{text}": write "NAME: FLAGS", with a name that can be that of a folder.')
        if name in sets:
            raise UserError(f'--set "{text}": there is another set of this name; give each its own.')
        folder = Path(arguments.out) / name
        argv = [arguments.scene, *flags.split(), *arguments.trainer]
        sets[name] = [parse_options([*argv, "--workspace", f"{folder}_{seed}", "--seed", str(seed)]) for seed in arguments.seeds]
    return sets


def _build(sets, arguments, device):
    """A Run for each set and seed; what can be wrong is found before the first step. The seeds of a set share its photos on the host."""
    scenes, folders = {}, {}
    for name, options in sets.items():
        scene = load_scene(options[0])
        held_out = len(scene.val)
        if not held_out or np.isin(scene.val, scene.train).any():
            raise UserError(f"set {name}: photos of {scene.root} must be held out to be measured on; use --train_split train.")
        if (arguments.photos or 1) > held_out:
            raise UserError(f"--photos {arguments.photos}: only {held_out} photos of {scene.root} are held out.")
        scenes[name], folders[name] = scene, [prepare_workspace(own) for own in options]
    for name, options in sets.items():
        _warm_up(Trainer(scenes[name], resolve(options[0], device), device, folders[name][0]))
    runs = []
    for name, options in sets.items():
        scene = scenes[name]
        photos = scene.val[_evenly(len(scene.val), arguments.photos or len(scene.val))]
        for seed, own, folder in zip(arguments.seeds, options, folders[name], strict=True):
            memory = RunMemory(device)
            trainer = Trainer(scene, resolve(own, device), device, folder)
            memory.watch(trainer.step.replay)
            runs.append(Run(f"{name}, seed {seed}", trainer, memory, photos, list(arguments.marks)))
    return runs


def _warm_up(trainer):
    """What a process does once, at its first steps of a kind, must not count as the training time of the run that happens to be first."""
    for _ in range(WARM_STEPS):
        trainer.advance()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)


def _evenly(total, count):
    """`count` of the numbers 0 to total - 1, each in the middle of an equal share."""
    return (2 * np.arange(count) + 1) * total // (2 * count)


if __name__ == "__main__":
    sys.exit(main())
