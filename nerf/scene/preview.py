"""Preview for --vis_pose: cameras, sparse points and scene cube as a page to turn about and as a picture, on a machine without a display."""

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from nerf.files import write_file
from nerf.scene.preview_page import page

FRUSTUM_DEPTH = 0.08  # of the farthest camera's distance from the mean camera, or of the bound where all are at one place
CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
FRUSTUM_EDGES = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [3, 4], [4, 1]])
CUBE_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
CUBE_EDGES = np.array([(a, b) for a in range(8) for b in range(a) if np.abs(CUBE_CORNERS[a] - CUBE_CORNERS[b]).sum() == 2])
VIEWS = (("from above", 0, 1), ("from the front", 0, 2), ("from the side", 1, 2))
COLOURS = {"training": "#1f77b4", "held out": "#d62728", "cube": "#7f7f7f", "box": "#2ca02c"}
SHOWN_POINTS = 20_000


def write_preview(scene, folder):
    """Write poses.html and poses.png to `folder`; returns a note. Raises UserError where that is not possible."""
    points = np.zeros((0, 3)) if scene.points is None else scene.points[np.abs(scene.points).max(axis=1) <= 2 * scene.bound]
    points = points[:: max(1, -(-len(points) // SHOWN_POINTS))]
    title = f"{scene.name}: {len(scene.cameras)} cameras, bound {scene.bound:g}, scale {scene.scale:.4g}"
    pyramids, boxes = _pyramids(scene.cameras, scene.bound), _boxes(scene)
    held_out = ~np.isin(np.arange(len(scene.cameras)), scene.train)
    groups = {name: np.flatnonzero(held_out == which) for name, which in (("training", False), ("held out", True))}
    named = {name: (COLOURS[name], [scene.names[i] for i in rows], pyramids[rows]) for name, rows in groups.items()}
    text = page(title, named, {name: (COLOURS[name], lines) for name, lines in boxes.items()}, points, scene.bound)
    write_file(folder / "poses.html", text.encode())
    lines = {name: pyramids[rows][:, FRUSTUM_EDGES].reshape(-1, 2, 3) for name, rows in groups.items()} | boxes
    write_file(folder / "poses.png", _picture(title, lines, points))
    return f"cameras drawn in {folder / 'poses.html'} (to turn about, in a browser) and {folder / 'poses.png'}"


def _boxes(scene):
    """Name -> segments [s,2,3] of the scene cube and, where it is within the cube, of the box that is marched through."""
    low, high = scene.aabb[:3], scene.aabb[3:]
    within = bool(np.abs(scene.aabb).max() <= scene.bound)
    boxes = {"cube": scene.bound * CUBE_CORNERS[CUBE_EDGES]}
    return boxes | ({"box": ((low + high) / 2 + (high - low) / 2 * CUBE_CORNERS)[CUBE_EDGES]} if within else {})


def _pyramids(cameras, bound):
    """[n,5,3]: apex and corners of each camera's pyramid of view, lens distortion left out."""
    positions = cameras.poses[:, :, 3].astype(np.float64)
    spread = np.linalg.norm(positions - positions.mean(axis=0), axis=1).max()
    depth = FRUSTUM_DEPTH * (spread if spread > 1e-6 else bound)
    focal, principal = cameras.intrinsics[:, None, :2], cameras.intrinsics[:, None, 2:]
    plane = (CORNERS * cameras.sizes[:, None] - principal) / focal
    local = depth * np.concatenate([plane * (1, -1), np.full((*plane.shape[:2], 1), -1.0)], axis=2)
    corners = positions[:, None] + local @ cameras.poses[:, :, :3].transpose(0, 2, 1)
    return np.concatenate([positions[:, None], corners], axis=1)


def _picture(title, lines, points):
    """The PNG file, as bytes. lines: name -> [s,2,3]; points [p,3]."""
    figure = Figure(figsize=(18, 6.6), layout="constrained")
    figure.suptitle(title)
    for axes, (name, x, y) in zip(figure.subplots(1, 3), VIEWS, strict=True):
        axes.scatter(points[:, x], points[:, y], s=0.4, color="0.6", linewidths=0)
        for label, segments in lines.items():
            axes.add_collection(LineCollection(segments[:, :, [x, y]], colors=COLOURS[label], linewidths=0.8, label=label))
        axes.set(title=name, xlabel="xyz"[x], ylabel="xyz"[y], aspect="equal")
        axes.autoscale_view()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(lines))
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()
