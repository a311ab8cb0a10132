"""What scripts/bench_quality.py makes of its curves: means over seeds, a table for a README, a plot."""

import io
import statistics

from nerf.files import write_file

MEASURED = ("psnr", "ssim", "lpips", "ms_per_step", "peak_memory_mib", "steps", "seconds")
COLUMNS = (("psnr", "PSNR, dB", ".2f"), ("ssim", "SSIM", ".4f"), ("lpips", "LPIPS", ".4f"), ("ms_per_step", "ms a step", ".2f"),
           ("peak_memory_mib", "peak MiB", ",.0f"), ("steps", "steps", ",.0f"), ("seconds", "seconds", ".1f"))  # fmt: skip
WITH_SPREAD = ("psnr", "ssim", "lpips")


def summarise(curves, sets, seeds, marks):
    """A row for each set and mark that a run of it has reached.

    Args:
        curves: "SET, seed SEED" -> list of points, each a dict with "mark" and some of MEASURED; None: not known or not finite.
        sets, seeds, marks: in the order of the rows.
    Returns:
        List of {"set", "mark", "runs", and for each of MEASURED that a point has {"mean", "sd", "count"}}; sd is that of a sample, None for
        fewer than two.
    """
    rows = []
    for name in sets:
        for mark in marks:
            points = [point for seed in seeds for point in curves[f"{name}, seed {seed}"] if point["mark"] == mark]
            if points:
                known = {key: _statistics([point.get(key) for point in points]) for key in MEASURED if key in points[0]}
                rows.append({"set": name, "mark": mark, "runs": len(points), **known})
    return rows


def table(report):
    """The rows as a table in markdown, under a line that says what was measured where."""
    rows = report["rows"]
    columns = [column for column in COLUMNS if any(row.get(column[0], {"count": 0})["count"] for row in rows)]
    photos, seeds = f"{report['photos']} of {report['held_out']} held-out photos", ", ".join(map(str, report["seeds"]))
    lines = [
        f"{report['scene']}; {photos}; seeds {seeds}; {report['device']}, torch {report['torch']}, {report['date']}",
        "",
        "| " + " | ".join(["set", "at", *(title for _, title, _ in columns)]) + " |",
        "|" + "---|" * (2 + len(columns)),
    ]
    for row in rows:
        cells = [_cell(row[key], form, row["runs"], key in WITH_SPREAD) for key, _, form in columns]
        lines.append("| " + " | ".join([row["set"], row["mark"], *cells]) + " |")
    return "\n".join(lines)


def plot(report, path):
    """PSNR against seconds, a line a run, from the points that were measured at given seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), constrained_layout=True)
    for name, points in report["curves"].items():
        shown = [point for point in points if point["mark"].endswith(" s") and point["psnr"] is not None]
        axes.plot([point["seconds"] for point in shown], [point["psnr"] for point in shown], marker="o", label=name)
    axes.set(xlabel="seconds of training", ylabel="held-out PSNR (dB)", title=f"{report['scene']}, {report['device']}")
    axes.grid(alpha=0.3)
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    pyplot.close(figure)
    write_file(path, content.getvalue())


def _statistics(values):
    known = [value for value in values if value is not None]
    mean, sd = (statistics.fmean(known) if known else None), (statistics.stdev(known) if len(known) > 1 else None)
    return {"mean": mean, "sd": sd, "count": len(known)}


def _cell(value, form, runs, spread):
    if not value["count"]:
        return "-"
    text = format(value["mean"], form)
    if spread and value["sd"] is not None:
        text += f" ± {value['sd']:{form}}"
    return text if value["count"] == runs else f"{text} ({value['count']} of {runs} runs)"
