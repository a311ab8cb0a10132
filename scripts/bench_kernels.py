"""Time of each kernel, the bytes that it must move, and how near that comes to the memory's speed; beside it the PyTorch twin.

    python scripts/bench_kernels.py --sizes 16 18 20 --out bench
    python scripts/bench_kernels.py --scene data/bonsai --sizes 16 18 20 --out bench -- -O --bound 8

Rays and samples are those of a scene after some steps of training (what follows `--` goes to the trainer), or of balls in a box. Times are
medians. On a GPU they are of CUDA events, and before each call a buffer larger than the L2 cache is written, which empties that cache and
gives the host time to queue the call; on a CPU they are of the wall clock. The memory's speed is measured first, by copying. Writes
kernels.json and kernels.md into the folder that --out names.
"""

import argparse
import json
import statistics
import sys
import time
from datetime import date
from itertools import chain
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kernel_cases.cases import cases
from kernel_cases.fused import fused_cases
from kernel_cases.intervals import interval_cases
from kernel_cases.work import scene_pool, synthetic_pool, work_of_size
from nerf.errors import UserError, tells_user_errors
from nerf.files import write_file

FLUSH = 2**29  # bytes: several times the L2 cache of any GPU, and a fifth of a millisecond of an H100
TWIN_WARM, TWIN_RUNS, TWIN_SECONDS = 1, 9, 3.0  # a twin is run until one of the last two is reached


@tells_user_errors
def main():
    """Measures, prints and writes."""
    arguments = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ceiling = copy_speed(arguments, device)
    print(f"{device_name(device)}: copying moves {ceiling:.0f} GB/s", flush=True)
    pool = scene_pool(arguments.scene, arguments.trainer, device, arguments.steps) if arguments.scene else synthetic_pool(device, arguments.grid_size)
    rows = []
    for size in arguments.sizes:
        work = work_of_size(pool, 2**size)
        for measured in chain(cases(work, arguments.log2_table_size), interval_cases(work), fused_cases(work, arguments.log2_table_size)):
            if arguments.only not in measured.name:
                continue
            rows.append(row(measured, size, work, ceiling, arguments, device))
            print(f"  2^{size} {measured.name}: {rows[-1]['ms']:.4f} ms, {rows[-1]['gb_per_s']:.3g} GB/s", flush=True)
    if not rows:
        raise UserError(f"--only {arguments.only}: no kernel has that in its name; without --only all are measured and named.")
    report = {"device": device_name(device), "torch": torch.__version__, "date": date.today().isoformat(), "copy_gb_per_s": ceiling,
              "scene": Path(arguments.scene).name if arguments.scene else None, "trainer": arguments.trainer,
              "log2_table_size": arguments.log2_table_size, "runs": arguments.runs, "rows": rows}  # fmt: skip
    print(table(report))
    if arguments.out:
        write_file(Path(arguments.out) / "kernels.json", (json.dumps(report, indent=1) + "\n").encode())
        write_file(Path(arguments.out) / "kernels.md", (table(report) + "\n").encode())


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 18, 20], help="log2 of the samples (default: %(default)s)")
    parser.add_argument("--scene", help="take rays and occupancy of this scene")
    parser.add_argument("--steps", type=int, default=300, help="steps of training before the scene's rays are drawn (default: %(default)s)")
    parser.add_argument("--out", help="write kernels.json and kernels.md into this folder")
    parser.add_argument("--log2_table_size", type=int, default=19, help="of the hash grid (default: %(default)s)")
    parser.add_argument("--grid_size", type=int, default=128, help="cells a side of the balls' occupancy grid (default: %(default)s)")
    parser.add_argument("--copy_mib", type=int, default=1024, help="MiB copied to measure the memory (default: %(default)s)")
    parser.add_argument("--warm", type=int, default=20, help="calls before measuring (default: %(default)s)")
    parser.add_argument("--twin_seconds", type=float, default=TWIN_SECONDS, help="most seconds in which a PyTorch twin is measured (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="measure only kernels whose name has this in it")
    parser.add_argument("--runs", type=int, default=50, help="measured calls (default: %(default)s)")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments = parser.parse_args(sys.argv[1:split])
    arguments.trainer = sys.argv[split + 1 :]
    return arguments


def copy_speed(arguments, device):
    """GB/s, read and written together, of copying a buffer."""
    source = torch.ones(arguments.copy_mib * 2**18, device=device)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), arguments.warm, arguments.runs, device)
    return 2 * 4 * source.numel() / seconds / 1e9


def row(measured, size, work, ceiling, arguments, device):
    """What is known of one case at one size."""
    seconds = timed(measured.kernel, arguments.warm, arguments.runs, device)
    twin = timed(measured.twin, TWIN_WARM, TWIN_RUNS, device, arguments.twin_seconds)
    speed = measured.bytes / seconds / 1e9
    return {
        "kernel": measured.name, "size": size, "samples": work.used, "rays": len(work.rays), "ms": 1000 * seconds, "bytes": measured.bytes,
        "formula": measured.formula, "gathered_bytes": measured.gathered, "gb_per_s": speed, "of_copy": speed / ceiling,
        "gathered_gb_per_s": measured.gathered / seconds / 1e9, "twin_ms": 1000 * twin, "twin_over_kernel": twin / seconds,
    }  # fmt: skip


def timed(call, warm, runs, device, most_seconds=float("inf")):
    """Median seconds of a call; of one that takes longer than `most_seconds` by itself, those of the first."""
    for _ in range(warm):
        first = clock_time(call, device)
        if first > most_seconds:
            return first
    flush = torch.empty(FLUSH, dtype=torch.uint8, device=device) if device.type == "cuda" else None
    times, begun = [], time.perf_counter()
    while len(times) < runs and (not times or time.perf_counter() - begun < most_seconds):
        times.append(event_time(call, flush) if device.type == "cuda" else clock_time(call, device))
    return statistics.median(times)


def event_time(call, flush):
    """Seconds of one call on the GPU, which begins with none of its data in the L2 cache."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flush.zero_()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def clock_time(call, device):
    begun = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def table(report):
    """The report as Markdown."""
    source = f"rays of {report['scene']}" if report["scene"] else "rays through balls in a box"
    lines = [
        f"{report['device']}, torch {report['torch']}, {report['date']}; {source}; copying moves {report['copy_gb_per_s']:.0f} GB/s.", "",
        "| kernel | size | ms | MB | GB/s | of copying | gathered GB/s | PyTorch, ms | times faster |", "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for line in report["rows"]:
        gathered = f"{line['gathered_gb_per_s']:.3g}" if line["gathered_bytes"] else ""
        lines.append(
            f"| {line['kernel']} | 2^{line['size']} | {line['ms']:.4f} | {line['bytes'] / 1e6:.3g} | {line['gb_per_s']:.3g} | {line['of_copy']:.0%} | "
            f"{gathered} | {line['twin_ms']:.3f} | {line['twin_over_kernel']:.1f} |"
        )
    formulas = {line["kernel"]: line["formula"] for line in report["rows"]}
    lines += ["", "Bytes that must move (M samples, N rays, E table entries, L levels of F features, K channels):", ""]
    return "\n".join(lines + [f"- {name}: {formula}" for name, formula in formulas.items()])


if __name__ == "__main__":
    sys.exit(main())
