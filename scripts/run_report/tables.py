"""The numbers of runs as tables, and how each run stands against the first of its scene."""

import numpy as np

PAPER = "The paper claims for hard sample mining: equal PSNR in half the time, 1 dB more at equal time, 40 to 50 % less memory."
HOW = ("Equal PSNR is that of the first run at its end, reached at the latest by the first validation that shows it; dB at a share of the time that "
       "both trained. Training's memory is the peak less what was there before the first step.")  # fmt: skip
SHARES = (0.25, 0.5, 1.0)  # of the time that both runs trained, at which their PSNR is compared


def numbers(run):
    """What is known of a run, by name; None: not known."""
    return {
        "psnr": run.result("psnr"), "ssim": run.result("ssim"), "lpips": run.result("lpips"), "training_time": run.result("training_time"),
        "steps": run.result("step"), "ms_per_step": run.over(np.median, "ms_per_step"), "peak_memory_mib": run.over(max, "peak_memory_mib"),
        "training_memory_mib": run.training_memory(), "hard_fraction": run.last("hard_fraction"), "tau": run.last("tau"),
        "frames_per_second": run.result("frames_per_second"), "device": run.last("device"),
    }  # fmt: skip


COLUMNS = (
    ("psnr", "PSNR [dB]", ".2f"), ("ssim", "SSIM", ".4f"), ("lpips", "LPIPS", ".4f"), ("training_time", "training [s]", ".1f"), ("steps", "steps", ",d"),
    ("ms_per_step", "ms/step", ".2f"), ("peak_memory_mib", "memory [MiB]", ",.0f"), ("training_memory_mib", "training's", ",.0f"),
    ("hard_fraction", "b/B", ".2f"), ("tau", "tau", ".1f"), ("frames_per_second", "frames/s", ".1f"),
)  # fmt: skip


def run_table(scene):
    """The rows of a SceneRuns, texts, under a row of titles; columns of which nothing is known are left out, but for PSNR and SSIM."""
    known = [numbers(run) for run in scene.runs]
    columns = [column for column in COLUMNS if column[0] in ("psnr", "ssim") or any(row[column[0]] is not None for row in known)]
    rows = [["run", *(title for _, title, _ in columns)]]
    return rows + [[run.label, *(text(row[key], form) for key, _, form in columns)] for run, row in zip(scene.runs, known, strict=True)]


def against(run, reference):
    """How a run stands against another, a dict; None: cannot be said.

    seconds_to_equal: when the run first had the PSNR that the reference had at its end; speedup: when the reference first had it, over that;
    gain_db: PSNR less the reference's at SHARES of the time that both trained; memory, training_memory: share of the reference's that the
    run saves. PSNR between two validations is interpolated.
    """
    own, other = run.curve("training_time", "psnr"), reference.curve("training_time", "psnr")
    result = dict.fromkeys(("seconds_to_equal", "speedup", "gain_db", "memory", "training_memory"))
    if len(own) and len(other):
        result["seconds_to_equal"], first = _first_time(own, other[-1, 1]), _first_time(other, other[-1, 1])
        if result["seconds_to_equal"] is not None:
            result["speedup"] = first / max(result["seconds_to_equal"], 1e-9)
        end = min(own[-1, 0], other[-1, 0])
        start = max(own[0, 0], other[0, 0])
        result["gain_db"] = [_at(own, share * end) - _at(other, share * end) if share * end >= start else None for share in SHARES]
    result["memory"] = _saved(run.over(max, "peak_memory_mib"), reference.over(max, "peak_memory_mib"))
    result["training_memory"] = _saved(run.training_memory(), reference.training_memory())
    return result


def claims_table(scene):
    """The runs of a scene against its first, as rows of texts under a row of titles; None for a single run."""
    reference, *others = scene.runs
    if not others:
        return None
    gains = [f"dB at {share:.0%}" for share in SHARES]
    rows = [[f"against {reference.label}", "equal PSNR after [s]", "times as fast", *gains, "memory saved", "of training's"]]
    for run in others:
        found = against(run, reference)
        missing = "not reached" if len(run.curve("training_time", "psnr")) else "-"
        reached = [text(found["seconds_to_equal"], ".1f", missing), text(found["speedup"], ".2f")]
        gained = [text(gain, "+.2f") for gain in found["gain_db"] or [None] * len(SHARES)]
        rows.append([run.label, *reached, *gained, text(found["memory"], "z.0%"), text(found["training_memory"], "z.0%")])
    return rows


def scenes_table(scenes):
    """PSNR of each scene and kind of run (label), with the mean over the scenes that have all kinds, as rows of texts under a row of titles."""
    labels = list(dict.fromkeys(run.label for scene in scenes for run in scene.runs))
    rows, complete = [["PSNR [dB]", *labels]], []
    for scene in scenes:
        psnr = {run.label: run.result("psnr") for run in scene.runs}
        rows.append([scene.name, *(text(psnr.get(label), ".2f") for label in labels)])
        values = [psnr.get(label) for label in labels]
        complete += [values] if None not in values else []
    if complete:
        rows.append([f"mean of {len(complete)}", *(text(value, ".2f") for value in np.mean(complete, axis=0))])
    return rows


def mined(scene):
    """Whether the paper's claims are about this SceneRuns: some run mines, and the first does not."""
    return not scene.runs[0].options.get("hsm") and any(run.options.get("hsm") for run in scene.runs)


def summary(scenes):
    """All numbers, for JSON."""
    return {
        scene.name: {
            run.label: {
                "workspace": str(run.folder), "hsm": bool(run.options.get("hsm")), "seed": run.options.get("seed"), **numbers(run),
                "against_first": against(run, scene.runs[0]) if run is not scene.runs[0] else None,
            }
            for run in scene.runs
        }
        for scene in scenes
    }  # fmt: skip


def aligned(rows):
    """Rows of texts as lines, the first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in rows
    )


def text(value, form, missing="-"):
    """A number in a format, or `missing` for None."""
    if value is None:
        return missing
    return format(int(value) if form.endswith("d") else value, form)


def _first_time(curve, psnr):
    """When a curve [k, 2] of seconds and PSNR first has a PSNR; None where it never has."""
    reached = np.flatnonzero(curve[:, 1] >= psnr)
    if not len(reached):
        return None
    k = reached[0]
    if k == 0:
        return float(curve[0, 0])
    (t0, p0), (t1, p1) = curve[k - 1], curve[k]
    return float(t0 + (t1 - t0) * (psnr - p0) / (p1 - p0))


def _at(curve, seconds):
    return float(np.interp(seconds, curve[:, 0], curve[:, 1]))


def _saved(own, reference):
    return None if own is None or not reference else 1.0 - own / reference
