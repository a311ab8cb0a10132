"""Compare training runs, of one scene or of several: a page, its figures and films, and the numbers as a table and as JSON.

    python scripts/report.py trial_demo/baseline trial_demo/hsm --out trial_demo/report

Runs of the same scene are set against the first of them. Writes into the folder: index.html (the page, with everything inside), report.json,
report.txt, and for each scene SCENE_curves.png, SCENE_pictures.png, SCENE_moments.png and SCENE_over_time.mp4 (a held-out picture over training time).
"""

import argparse
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from nerf.errors import UserError, tells_user_errors
from nerf.files import write_file
from run_report.figures import common_views, draw_curves, draw_moments, draw_pictures
from run_report.film import run_films, write_film
from run_report.page import Page
from run_report.runs import load_scenes, remarks
from run_report.tables import (
    HOW,
    PAPER,
    aligned,
    claims_table,
    mined,
    run_table,
    scenes_table,
    summary,
)


@tells_user_errors
def main(arguments=None):
    """Prints the tables and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspaces", nargs="+", metavar="WORKSPACE", help="folders that main.py trained into")
    parser.add_argument("--out", default="report", metavar="FOLDER", help="where the page goes (default: report)")
    parser.add_argument("--title", help="heading of the page (default: the names of the scenes)")
    parser.add_argument("--view", action="append", default=[], metavar="NAME", help="a held-out photo to show; repeatable (default: three)")
    _report(parser.parse_args(arguments))


def _report(options):
    scenes, out = load_scenes(options.workspaces), Path(options.out)
    if options.view and len(scenes) > 1:
        raise UserError("--view names photos of one scene; give the workspaces of one scene.")
    page, texts = Page(options.title or "Training runs: " + ", ".join(scene.name for scene in scenes)), []
    if len(scenes) > 1:
        rows = scenes_table(scenes)
        page.table(rows)
        texts.append(aligned(rows))
    for scene in scenes:
        texts.append(_scene_text(scene))
        _add_scene(page, scene, out / re.sub(r"[^\w.-]", "_", scene.name), options.view)
    print("\n\n".join(texts))
    write_file(out / "report.txt", ("\n\n".join(texts) + "\n").encode())
    write_file(out / "report.json", (json.dumps(summary(scenes), indent=1) + "\n").encode())
    write_file(out / "index.html", page.html().encode())
    print(f"\nThe page: {out / 'index.html'}")


def _scene_text(scene):
    tables = [rows for rows in (run_table(scene), claims_table(scene)) if rows]
    notes = [HOW] * (len(scene.runs) > 1) + [PAPER] * mined(scene) + remarks(scene)
    return "\n\n".join([scene.name, *map(aligned, tables), "\n".join(notes)])


def _add_scene(page, scene, stem, wanted):
    """A scene's part of the page; its figures become files beside it, whose names begin with `stem`."""
    page.heading(scene.name)
    page.table(run_table(scene))
    if rows := claims_table(scene):
        page.table(rows)
        page.text(HOW)
    if mined(scene):
        page.text(PAPER)
    page.listing(remarks(scene))
    if draw_curves(scene.runs, curves := Path(f"{stem}_curves.png")):
        page.picture(curves, "PSNR, time, memory, mined share and tau while the runs trained")
    else:
        page.text("No curves: the runs have no validation in history.jsonl.")
    if views := common_views(scene.runs, wanted):
        page.heading("Held-out photos, renders and errors", 3)
        draw_pictures(scene.runs, views, pictures := Path(f"{stem}_pictures.png"))
        page.picture(pictures, "Held-out photos beside what each run renders there, and the errors")
    else:
        page.text("No pictures: the runs have no evaluated view in common (run main.py with --test).")
    films, photo = run_films(scene.runs)
    if films:
        page.heading("One held-out photo over training time", 3)
        draw_moments(films, moments := Path(f"{stem}_moments.png"))
        write_film(films, photo, film := Path(f"{stem}_over_time.mp4"))
        page.picture(moments, "A held-out picture at five moments of each run")
        page.film(film)


if __name__ == "__main__":
    sys.exit(main())
