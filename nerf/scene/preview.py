"""Preview for --vis_pose: cameras, sparse points and scene cube as a 3-D file and as a picture, on a machine without a display."""

import numpy as np
import trimesh
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from nerf.errors import UserError

FRUSTUM_DEPTH = 0.08  # of the farthest camera's distance from the mean camera, or of the bound where all are at one place
CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
FRUSTUM_EDGES = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [3, 4], [4, 1]])
CUBE_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
CUBE_EDGES = np.array([(a, b) for a in range(8) for b in range(a) if np.abs(CUBE_CORNERS[a] - CUBE_CORNERS[b]).sum() == 2])
VIEWS = (("from above", 0, 1), ("from the front", 0, 2), ("from the side", 1, 2))
COLOURS = {"training": (31, 119, 180, 255), "held out": (214, 39, 40, 255), "cube": (127, 127, 127, 255), "box": (44, 160, 44, 255),
           "points": (90, 90, 90, 255)}
SHOWN_POINTS = 20_000


def write_preview(scene, folder):
    """Write poses.glb and poses.png to `folder`; returns a note. Raises UserError where that is not possible."""
    lines = _lines(scene)
    points = np.zeros((0, 3)) if scene.points is None else scene.points[np.abs(scene.points).max(axis=1) <= 2 * scene.bound]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_glb(folder / "poses.glb", lines, points)
        _write_png(folder / "poses.png", scene, lines, points)
    except OSError as error:
        raise UserError(f"--workspace {folder}: cannot be written ({error.strerror or error}); pass another folder") from None
    return f"cameras drawn in {folder / 'poses.png'} and {folder / 'poses.glb'}"


def _lines(scene):
    """Name -> segments [s,2,3] of the frusta, the scene cube and the box that is marched through, where that is within the cube."""
    held_out = ~np.isin(np.arange(len(scene.cameras)), scene.train)
    frusta = _frusta(scene.cameras, scene.bound)
    low, high = scene.aabb[:3], scene.aabb[3:]
    within = bool(np.abs(scene.aabb).max() <= scene.bound)
    return {
        "training": frusta[~held_out].reshape(-1, 2, 3),
        "held out": frusta[held_out].reshape(-1, 2, 3),
        "cube": scene.bound * CUBE_CORNERS[CUBE_EDGES],
        "box": ((low + high) / 2 + (high - low) / 2 * CUBE_CORNERS)[CUBE_EDGES[:len(CUBE_EDGES) * within]],
    }


def _frusta(cameras, bound):
    """[n,8,2,3]: the edges of each camera's pyramid of view, lens distortion left out."""
    positions = cameras.poses[:, :, 3].astype(np.float64)
    spread = np.linalg.norm(positions - positions.mean(axis=0), axis=1).max()
    depth = FRUSTUM_DEPTH * (spread if spread > 1e-6 else bound)
    focal, principal = cameras.intrinsics[:, None, :2], cameras.intrinsics[:, None, 2:]
    plane = (CORNERS * cameras.sizes[:, None] - principal) / focal
    local = depth * np.concatenate([plane * (1, -1), np.full((*plane.shape[:2], 1), -1.0)], axis=2)
    corners = positions[:, None] + local @ cameras.poses[:, :, :3].transpose(0, 2, 1)
    return np.concatenate([positions[:, None], corners], axis=1)[:, FRUSTUM_EDGES]


def _write_glb(file, lines, points):
    model = trimesh.Scene()
    for name, segments in lines.items():
        if len(segments):
            path = trimesh.load_path(segments)
            path.colors = np.tile(np.array(COLOURS[name], dtype=np.uint8), (len(path.entities), 1))
            model.add_geometry(path, geom_name=name)
    if len(points):
        grey = np.full((len(points), 4), COLOURS["points"], dtype=np.uint8)
        model.add_geometry(trimesh.PointCloud(points, colors=grey), geom_name="points")
    file.write_bytes(model.export(file_type="glb"))


def _write_png(file, scene, lines, points):
    figure = Figure(figsize=(18, 6.6), layout="constrained")
    figure.suptitle(f"{scene.name}: {len(scene.cameras)} cameras, bound {scene.bound:g}, scale {scene.scale:.4g}")
    points = points[::max(1, len(points) // SHOWN_POINTS)]
    for axes, (title, x, y) in zip(figure.subplots(1, 3), VIEWS, strict=True):
        axes.scatter(points[:, x], points[:, y], s=0.4, color="0.6", linewidths=0)
        for name, segments in lines.items():
            axes.add_collection(LineCollection(segments[:, :, [x, y]], colors=[np.array(COLOURS[name]) / 255], linewidths=0.8, label=name))
        axes.set(title=title, xlabel="xyz"[x], ylabel="xyz"[y], aspect="equal")
        axes.autoscale_view()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(lines))
    FigureCanvasAgg(figure).print_png(file)
