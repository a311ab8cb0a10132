"""Photos to poses: features, matches, models, of which the largest is kept, and a last adjustment."""

import contextlib
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from nerf.errors import UserError
from nerf.scene.colmap_model import numbered_models
from sfm.colmap_program import ColmapProgram
from sfm.colmap_python import ColmapPython
from sfm.pairs import numbered_names, similar_pairs
from sfm.work import ColmapError

# All pairs of photos: up to here (20,000 pairs) nothing is left to chance; up to the second, they are tried where the choice of pairs was poor.
ALL_PAIRS, ALL_PAIRS_IF_NEEDED = 200, 400
ENOUGH = 0.9  # of the photos
NEIGHBOURS = 20  # similar photos that each photo is matched with
# A principal point is only found where many photos share a camera; else it stays in the middle of the picture.
PHOTOS_FOR_PRINCIPAL_POINT = 10
MATCHERS = ("auto", "exhaustive", "sequential", "spatial", "transitive", "vocab_tree", "retrieval")


@dataclass(frozen=True)
class Reconstruction:
    """model: folder of the largest model; sizes: photos in each model of the same attempt, the largest first; matchers: names of those
    that ran; minutes: stage -> duration."""

    model: Path
    sizes: list
    matchers: list
    minutes: dict


def choose_colmap(wanted):
    """The COLMAP to use, for --colmap auto, binary or pycolmap. Raises UserError where it is not there.

    auto: what can use a GPU comes first; among equals pycolmap, as the program that Debian installs is old and matches several times slower.
    """
    forms = {"pycolmap": ColmapPython, "binary": ColmapProgram}
    there = [form() for name, form in forms.items() if wanted in ("auto", name) and form.is_there()]
    if there:
        return max(there, key=lambda colmap: colmap.has_gpu)
    missing = {"auto": "neither the program colmap is on the PATH nor the Python package pycolmap is installed",
               "binary": "no program colmap is on the PATH", "pycolmap": "the Python package pycolmap is not installed"}[wanted]
    raise UserError(f"--colmap {wanted}: {missing}; run pip install pycolmap, or apt-get install colmap.")


def attempts(wanted, count, in_order):
    """Lists of matchers to run, each list with a mapping after it, until enough of the `count` photos are registered.

    in_order: the photos are frames of a video. `retrieval` matches photos that look alike: it closes the loops that `sequential` leaves open.
    """
    if wanted != "auto":
        return [[wanted]]
    if count <= ALL_PAIRS and not in_order:
        return [["exhaustive"]]
    return [["sequential", "retrieval"], *([["exhaustive"]] if count <= ALL_PAIRS_IF_NEEDED else [])]


def reconstruct(colmap, work, groups, features, plan, say, vocabulary=None):
    """Runs COLMAP on the photos of `groups` (lists of names, a camera each).

    plan: see attempts; say: print or alike, for progress. Returns a Reconstruction. Raises UserError where no photos fit together, or COLMAP fails.
    """
    minutes, count = {}, sum(map(len, groups))

    @contextlib.contextmanager
    def stage(name, what):
        say(f"{name}: {what} ...")
        start = time.perf_counter()
        try:
            yield
        except ColmapError as error:
            raise UserError(f"{error}; see {work.log}, and try another --colmap or --colmap_matcher.") from None
        minutes[name] = minutes.get(name, 0) + (time.perf_counter() - start) / 60

    with stage("features", f"{count} photos, up to {features.longest} pixels a side, on the {'GPU' if features.gpu else 'CPU'}"):
        for names in (group for group in groups if len(group) > 1):
            colmap.extract(work, names, True, features)
        alone = [group[0] for group in groups if len(group) == 1]
        if alone:
            colmap.extract(work, alone, False, features)
    ran, models = [], []
    for number, matchers in enumerate(plan):
        for kind in matchers:
            with stage("matching", kind):
                _match(colmap, work, kind, features, vocabulary)
            ran.append(kind)
        folder = work.folder / f"models_{number}"
        folder.mkdir()
        with stage("poses", "this takes longest with many photos"):
            colmap.map(work, folder)
        models = max(models, numbered_models(folder), key=lambda found: found[0][0] if found else 0)
        if models and models[0][0] >= ENOUGH * count:
            break
    if not models:
        raise UserError(f"COLMAP finds no two of the {count} photos that show the same things well enough: take photos that overlap by two "
                        f"thirds and turn about the scene rather than on the spot (matched: {', '.join(ran)}; see {work.log}).")
    registered, model = models[0]
    if registered >= PHOTOS_FOR_PRINCIPAL_POINT * len(groups):
        with stage("refinement", "all cameras and points together"):
            colmap.refine(work, model)
    return Reconstruction(model, [size for size, _ in models], ran, {name: round(value, 2) for name, value in minutes.items()})


def _match(colmap, work, kind, features, vocabulary):
    if kind != "retrieval":
        colmap.match(work, kind, features, vocabulary)
        return
    pairs = similar_pairs(work.database, NEIGHBOURS)
    if pairs:
        with numbered_names(work.database):
            colmap.match_pairs(work, pairs, features)


def feature_counts(database):
    """Photo name -> how many features were found in it."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return dict(connection.execute("SELECT name, rows FROM images JOIN keypoints USING (image_id)"))
