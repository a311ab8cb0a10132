"""A held-out picture over training time, the runs of a scene side by side."""

import cv2
import numpy as np

from nerf.encoding import encoding, ffmpeg_path
from nerf.images import contact_sheet

from .figures import read_picture
from .runs import read_json
from .tables import text

FPS = 24
SECONDS = 12  # that a film aims to last
LONGEST = 24  # frames that one moment is shown at most
PANEL = 480  # pixels, the width of a picture: greater ones are reduced, tiny ones enlarged


def run_films(runs):
    """label -> [(seconds, PSNR of that view or None, [H, W, 3] uint8)], a picture a validation, of the first held-out photo that all runs show;
    and that photo. {} and None where there are no two moments to show, or they are of different photos."""
    kept = {run.label: _kept(run) for run in runs}
    photos = {image["name"] for moments in kept.values() for _, image, _ in moments}
    if len(photos) != 1 or not all(kept.values()) or max(map(len, kept.values())) < 2:
        return {}, None
    photo = read_picture(f"{kept[runs[0].label][0][2]}_photo.png")
    size = PANEL, round(PANEL * photo.shape[0] / photo.shape[1])
    films = {
        label: [(seconds, image["psnr"], _sized(read_picture(f"{stem}_rgb.png"), size)) for seconds, image, stem in moments]
        for label, moments in kept.items()
    }
    return films, _sized(photo, size)


def write_film(films, photo, path):
    """An MP4 with the photo and each run's picture of it at the same moment of training. films, photo: as `run_films` returns them."""
    clock = max(([seconds for seconds, _, _ in film] for film in films.values()), key=len)
    hold = max(1, min(LONGEST, round(SECONDS * FPS / len(clock))))
    nothing = np.full_like(photo, 255)
    frames = (_frame(films, photo, seconds, nothing) for seconds in clock)
    first = next(frames)
    with encoding(ffmpeg_path(), path, first.shape[1::-1], FPS) as encoder:
        for frame in (first, *frames):
            for _ in range(hold):
                encoder.add(frame)


def _frame(films, photo, seconds, nothing):
    titles, panels = ["held-out photo"], [photo]
    for label, film in films.items():
        # Runs pass a validation's time at slightly different moments: what is due a little later counts as there.
        past = [moment for moment in film if moment[0] <= 1.02 * seconds + 0.1]
        panels.append(past[-1][2] if past else nothing)
        titles.append(f"{label}, {text(past[-1][1], '.2f') if past else '-'} dB")
    return contact_sheet(titles, [(f"after {seconds:.1f} s of training", panels)])


def _kept(run):
    """(seconds, numbers of the first view, beginning of its pictures' paths) of each validation that kept pictures, the last in results/."""
    moments = []
    for line in run.history:
        folders = run.folder / "validation" / f"step_{line.get('step') or 0:08d}", run.folder / "results"
        for folder in folders if line is run.history[-1] and not run.outdated() else folders[:1]:
            if (folder / "metrics.json").is_file() and (images := read_json(folder / "metrics.json").get("images")):
                stem = folder / images[0]["file"]
                if stem.with_name(f"{stem.name}_rgb.png").is_file():
                    moments.append((float(line["training_time"]), images[0], stem))
                    break
    return moments


def _sized(picture, size):
    shrinks = picture.shape[1] > size[0]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
