"""A picture of the poses, on a machine without a display."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nerf.files import atomic_file, writable
from nerf.scene.normalise import trimmed_mean, upright

VIEWS = (("from above", 0, 1), ("from the front", 0, 2), ("from the side", 1, 2))
SHOWN_POINTS = 20_000
REACH = 1.6  # of the cameras' distances from the middle: what is drawn
ARROW = 0.12  # of the same


def draw_poses(file, capture, title):
    """Writes a PNG: cameras as arrows, coloured in the order of names, and sparse points, from three sides, up being +z."""
    rotation, _ = upright(capture.poses)
    positions, axes_of_view = capture.poses[:, :, 3] @ rotation.T, -capture.poses[:, :, 2] @ rotation.T
    points = np.zeros((0, 3)) if capture.points is None else capture.points @ rotation.T
    centre = trimmed_mean(points) if len(points) else positions.mean(axis=0)
    reach = np.linalg.norm(positions - centre, axis=1).max() or 1.0
    points = points[::max(1, len(points) // SHOWN_POINTS)]
    figure = Figure(figsize=(18, 6.6), layout="constrained")
    figure.suptitle(title)
    order = np.arange(len(positions))
    for axes, (side, x, y) in zip(figure.subplots(1, 3), VIEWS, strict=True):
        axes.scatter(points[:, x], points[:, y], s=0.4, color="0.6", linewidths=0)
        axes.quiver(positions[:, x], positions[:, y], axes_of_view[:, x], axes_of_view[:, y], order, cmap="viridis", angles="xy",
                    scale_units="xy", scale=1 / (ARROW * reach), width=0.003, pivot="tail")
        shown = axes.scatter(positions[:, x], positions[:, y], c=order, cmap="viridis", s=12)
        axes.set(title=side, xlabel="xyz"[x], ylabel="xyz"[y], aspect="equal", xlim=centre[x] + REACH * reach * np.array([-1, 1]),
                 ylim=centre[y] + REACH * reach * np.array([-1, 1]))
    figure.colorbar(shown, ax=axes, label="photo, in the order of names")
    with writable(file), atomic_file(file) as stream:
        FigureCanvasAgg(figure).print_png(stream)
