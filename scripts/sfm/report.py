"""What came of a capture, in numbers and in words, with advice where it went badly."""

import json
import struct
from dataclasses import dataclass

import numpy as np

from nerf.files import write_file
from nerf.scene.cameras import FISHEYE, LARGEST

FEW = 0.9  # of the photos: below it there is advice
LARGE_ERROR = 1.5  # pixels; COLMAP itself drops points off by more than 4
FEW_FEATURES = 500
FEW_PHOTOS = 30
PLAUSIBLE_VIEW = (20, 120)  # degrees across the picture
SQUARE_PIXELS = 0.1  # how far fx / fy may be from 1
NAMED = 8


@dataclass(frozen=True)
class SparsePoints:
    """p points in file units. positions [p,3] float64; colours [p,3] uint8; errors [p]: mean reprojection error, pixels; tracks [p]: how
    many photos see the point."""

    positions: np.ndarray
    colours: np.ndarray
    errors: np.ndarray
    tracks: np.ndarray


def read_points(folder):
    """SparsePoints of the model in `folder`, from points3D.bin or points3D.txt as COLMAP wrote it; those that are not finite are left out."""
    rows = []
    if (folder / "points3D.bin").is_file():
        content = (folder / "points3D.bin").read_bytes()
        at = 8
        for _ in range(struct.unpack_from("<Q", content)[0]):
            _, *row = struct.unpack_from("<Q3d3BdQ", content, at)
            at += struct.calcsize("<Q3d3BdQ") + 8 * row[-1]
            rows.append(row)
    elif (folder / "points3D.txt").is_file():
        for line in (folder / "points3D.txt").read_text(encoding="utf-8-sig").splitlines():
            if line.strip() and not line.startswith("#"):
                fields = line.split()
                rows.append([float(field) for field in fields[1:8]] + [(len(fields) - 8) // 2])
    table = np.array(rows, dtype=np.float64).reshape(-1, 8)
    table = table[(np.abs(table[:, :3]) < LARGEST).all(axis=1)]
    return SparsePoints(table[:, :3], table[:, 3:6].astype(np.uint8), table[:, 6], table[:, 7])


def make_report(capture, points, given, **facts):
    """The report as a dictionary, without advice.

    capture: of the registered photos; points: SparsePoints; given: names of all photos; facts: what else is to stand in it.
    """
    registered = set(capture.names)
    return {**facts, "photos": len(given), "registered": len(registered), "not_registered": [name for name in given if name not in registered],
            "points": len(points.errors), "mean_reprojection_error": _mean(points.errors, 3), "photos_a_point": _mean(points.tracks, 2),
            "cameras": _cameras(capture)}


def _mean(values, digits):
    return round(float(values.mean()), digits) if len(values) else 0.0


def _cameras(capture):
    """Each lens once, with how many photos were taken through it; the most used first."""
    rows = np.concatenate([capture.full_sizes, capture.intrinsics, capture.distortion, capture.lens[:, None]], axis=1)
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    cameras = []
    for row, count in sorted(zip(kinds.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]):
        width, height, fx, fy, cx, cy, k1, k2, k3, k4, p1, p2, lens = row
        view = width / fx if lens == FISHEYE else 2 * np.arctan(width / 2 / fx)
        cameras.append({"photos": count, "width": int(width), "height": int(height), "view_degrees": round(float(np.degrees(view)), 1),
                        "fx": fx, "fy": fy, "cx": cx, "cy": cy, "k1": k1, "k2": k2, "k3": k3, "k4": k4, "p1": p1, "p2": p2})
    return cameras


def advice(report, features=None):
    """Sentences that say what to do better, none where all went well. features: photo name -> number of features, or None."""
    said = []
    given, registered, missing = report["photos"], report["registered"], report["not_registered"]
    if registered < FEW * given:
        matchers = report.get("matchers", [])
        is_video = "frames" in report
        if matchers and "exhaustive" not in matchers:
            said.append("Try --colmap_matcher exhaustive: it compares all photos with each other.")
        said.append(f"{given - registered} photos have no pose: " + (
            "take more frames (--video_fps), move slowly, and keep the same things in view." if is_video else
            "take more between them and the others, each sharing two thirds with the next."))
        if not report.get("affine") and matchers:
            said.append("--estimate_affine_shape finds more between photos taken from far apart, for several times the time.")
        if len(report.get("models", [])) > 1:
            said.append(f"The photos fall into {len(report['models'])} groups ({', '.join(map(str, report['models']))} photos) that COLMAP could "
                        "not join, and the largest is kept: photos that show parts of two groups would join them.")
    poor = sorted(name for name in missing if (features or {}).get(name, FEW_FEATURES) < FEW_FEATURES)
    if poor:
        said.append(f"{_named(poor)} show too little texture or are blurred (fewer than {FEW_FEATURES} features).")
    if report["mean_reprojection_error"] > LARGE_ERROR:
        said.append(f"The mean reprojection error of {report['mean_reprojection_error']:.2f} pixels is large: something moved, or the lens is of "
                    "another kind (--camera_model OPENCV_FISHEYE for fisheyes).")
    odd = [camera for camera in report["cameras"] if not (PLAUSIBLE_VIEW[0] < camera["view_degrees"] < PLAUSIBLE_VIEW[1]
                                                          and abs(camera["fx"] / camera["fy"] - 1) < SQUARE_PIXELS)]
    if odd:
        said.append(f"A camera sees {odd[0]['view_degrees']:g} degrees across with focal lengths of {odd[0]['fx']:.0f} x {odd[0]['fy']:.0f} pixels, "
                    "which is odd: were its photos cropped, or is it a fisheye (--camera_model OPENCV_FISHEYE)? Else --camera_model "
                    "SIMPLE_RADIAL has less to go wrong.")
    if registered < FEW_PHOTOS:
        said.append(f"{registered} photos are few for a scene that can be looked at from anywhere: take fifty or more.")
    return said


def report_text(report):
    """The report for people, a line a fact."""
    share = 100 * report["registered"] / report["photos"]
    lines = []
    lines.append(f"{report['registered']} of {report['photos']} photos registered ({share:.0f} %), mean reprojection error "
                 f"{report['mean_reprojection_error']:.2f} pixels, {report['points']:,} points, each in {report['photos_a_point']:.1f} photos")
    if report["not_registered"]:
        lines.append(f"not registered: {_named(report['not_registered'])}")
    if report.get("colmap"):
        minutes = ", ".join(f"{name} {value:.1f}" for name, value in report["minutes"].items())
        lines.append(f"by {report['colmap']}, matching {', '.join(report['matchers'])}; minutes: {minutes}")
    for camera in report["cameras"][:NAMED]:
        lines.append(f"camera of {camera['photos']} photos: {camera['width']}x{camera['height']}, {camera['view_degrees']:g} degrees across, "
                     f"focal length {camera['fx']:.1f} x {camera['fy']:.1f} pixels")
    if len(report["cameras"]) > NAMED:
        lines.append(f"and {len(report['cameras']) - NAMED} more cameras (report.json)")
    lines += report["notes"]
    lines += [f"advice: {sentence}" for sentence in report["advice"]]
    return "\n".join(lines)


def write_report(folder, report):
    """report.json and report.txt."""
    write_file(folder / "report.json", (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape"))
    write_file(folder / "report.txt", (report_text(report) + "\n").encode("utf-8", "surrogateescape"))


def _named(names):
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
