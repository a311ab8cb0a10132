"""Time and memory of a training step, baseline and hard sample mining side by side in one run.

    python scripts/bench_step.py data/bonsai --sizes 18 20 -- -O --bound 8
    python scripts/bench_step.py data/bonsai --kind "graph=--hsm" "eager=--hsm --no-graph" -- -O

What follows `--` goes to the trainer, with the flags of each kind. For each size B = 2^size all kinds train `--warm` steps, then take turns; times are
medians over the turns, of the wall clock with the device idle at both ends. Launches (what the host sends: a recorded step is one), kernels, host
synchronisations and GPU-busy time are counted by torch's profiler over `--profiled` steps. Both include the occupancy updates, one in 16 steps. The peak of
memory is what two rounds of steps, with updates, reach beyond what stays allocated between steps, recorded steps' own memory included.
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

WAITS = ("Synchronize", "cudaMemcpy ")  # runtime calls that stop the host; an asynchronous copy is none


@tells_user_errors
def main():
    """Measures and prints."""
    arguments = _parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for size in arguments.sizes:
        base = [arguments.scene, *arguments.trainer, "--num_points", str(2**size)]
        kinds = {name: _trainer([*base, *flags.split()], device) for name, _, flags in (kind.partition("=") for kind in arguments.kind)}
        for trainer in kinds.values():
            _steps(trainer, arguments.warm)
        rows += _measure(kinds, 2**size, arguments, device)
    report = {"device": _device_name(device), "torch": torch.__version__, "date": date.today().isoformat(), "scene": Path(arguments.scene).name,
              "trainer": arguments.trainer, "warm": arguments.warm, "rows": rows}  # fmt: skip
    if arguments.out:
        write_file(arguments.out, (json.dumps(report, indent=1) + "\n").encode())
    print(_table(report))


def _parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene")
    parser.add_argument("--kind", nargs="+", default=["baseline=", "hsm=--hsm"], help="name=flags of each kind to compare (default: baseline, hsm)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[18, 20], help="log2 of the samples a step (default: %(default)s)")
    parser.add_argument("--warm", type=int, default=600, help="steps before measuring (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=9, help="turns of each kind (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=32, help="steps a turn (default: %(default)s)")
    parser.add_argument("--profiled", type=int, default=16, help="steps under the profiler (default: %(default)s)")
    parser.add_argument("--out", help="write the numbers to this JSON file")
    own, trainer = (sys.argv[1:], []) if "--" not in sys.argv else (sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :])
    arguments = parser.parse_args(own)
    arguments.trainer = trainer
    return arguments


def _trainer(argv, device):
    folder = Path(tempfile.mkdtemp(prefix="bench_step_"))
    options = resolve(parse_options([*argv, "--workspace", str(folder)]), device)
    return Trainer(load_scene(options), options, device, folder)


def _steps(trainer, count):
    for _ in range(count):
        trainer.advance()
        if trainer.step.steps % READ_INTERVAL == 0:
            trainer.follow()


def _synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _measure(kinds, samples, arguments, device):
    """A row a kind."""
    times = {kind: [] for kind in kinds}
    for _ in range(arguments.turns):
        for kind, trainer in kinds.items():
            _synchronise(device)
            started = time.perf_counter()
            _steps(trainer, arguments.steps)
            _synchronise(device)
            times[kind].append((time.perf_counter() - started) / arguments.steps)
    rows = []
    for kind, trainer in kinds.items():
        seconds = statistics.median(times[kind])
        row = {"kind": kind, "samples": samples, "ms": 1000 * seconds, "ms_spread": [1000 * min(times[kind]), 1000 * max(times[kind])],
               "samples_per_second": samples / seconds, "peak_mib": _peak(trainer, device), **_profile(trainer, arguments.profiled, device)}  # fmt: skip
        trainer.follow()
        trainer.readout.wait()
        _, numbers = trainer.follow()
        rows.append({**row, "hard_fraction": numbers.hard / max(numbers.samples, 1), "drawn_fraction": numbers.drawn / max(numbers.samples, 1), "rays": numbers.rays, "used_samples": numbers.samples})
    return rows


def _peak(trainer, device):
    """MiB that two rounds of steps, each with an occupancy update, reach beyond what is allocated between steps; None on a CPU."""
    if device.type != "cuda":
        return None
    _synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    between = torch.cuda.memory_allocated(device)
    _steps(trainer, 32)
    _synchronise(device)
    return (torch.cuda.max_memory_allocated(device) - between + trainer.step.replay.memory()) / 2**20


def _profile(trainer, steps, device):
    """Launches, waits and GPU-busy ms a step, and the ten kernels that take most; empty on a CPU."""
    if device.type != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        for _ in range(steps):
            trainer.advance()
    _synchronise(device)
    host = [event for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CPU]
    kernels = [event for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CUDA and not _is_range(event.name)]
    waits = [event.name for event in host if any(name in event.name + " " for name in WAITS)]
    by_name = {}
    for kernel in kernels:
        by_name[kernel.name] = by_name.get(kernel.name, 0) + kernel.device_time / 1000 / steps
    most = sorted(by_name.items(), key=lambda item: -item[1])
    return {
        "launches": len([event for event in host if "LaunchKernel" in event.name or "GraphLaunch" in event.name]) / steps,
        "kernels": len(kernels) / steps,
        "host_waits": max(0, len(waits) - 1) / steps,  # the profiler itself waits once, when it stops
        "gpu_busy_ms": sum(kernel.device_time for kernel in kernels) / 1000 / steps,
        "kernels_ms": [[name[:200], round(ms, 4)] for name, ms in most],
    }


def _is_range(name):
    """Whether an event on the device is not a kernel but a range that torch marked, such as "Optimizer.step#FusedAdam.step"."""
    return "#" in name and "(" not in name


def _device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def _table(report):
    """The rows as text, with the ratio of each kind to the first one for each size, and the ten kernels that take most."""
    columns = [("kind", "{}"), ("samples", "{}"), ("ms", "{:.3f}"), ("samples_per_second", "{:.3g}"), ("launches", "{:.0f}"), ("kernels", "{:.0f}"), ("host_waits", "{:.2f}"),
               ("gpu_busy_ms", "{:.3f}"), ("peak_mib", "{:.0f}"), ("hard_fraction", "{:.3f}"), ("drawn_fraction", "{:.3f}"), ("rays", "{:.0f}")]  # fmt: skip
    lines = [f"{report['device']}, torch {report['torch']}, {report['date']}", " | ".join(name for name, _ in columns)]
    for row in report["rows"]:
        lines.append(" | ".join("-" if row.get(name) is None else form.format(row[name]) for name, form in columns))
    first = {}
    for row in report["rows"]:
        base = first.setdefault(row["samples"], row)
        if row is not base:
            ratios = [f"{name} {row[name] / base[name]:.2f}" for name in ("ms", "gpu_busy_ms", "peak_mib") if base.get(name)]
            lines.append(f"{row['kind']} over {base['kind']} at {row['samples']}: " + ", ".join(ratios))
    for row in report["rows"]:
        lines += [f"{row['kind']} {row['samples']}"] + [f"  {ms:8.4f} ms  {name[:100]}" for name, ms in row.get("kernels_ms", [])[:10]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
