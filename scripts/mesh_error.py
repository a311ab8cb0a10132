"""How far a mesh of the demo scene is from the truth, which the scene's own ray tracer knows.

    python scripts/mesh_error.py data/demo trial_demo/hsm/mesh

Both surfaces are sampled where the training cameras see them, a point a pixel, and thinned to a point a small cube, so that what many
cameras see from nearby does not count for more. Accuracy is the mean distance of the mesh's points from the nearest true one, completeness
that of the true points from the nearest of the mesh, Chamfer distance the mean of both (after Aanaes et al. 2016, IJCV 120). All are in the
units of the scene's files, in which the table has a radius of 1.2. MESH/error.json holds the same numbers.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import trimesh
from scipy.spatial import cKDTree

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from demo_scene.still_life import still_life
from demo_scene.tracer import nearest_hit
from nerf.errors import UserError, tells_user_errors
from nerf.files import write_file
from nerf.mesh_parts.raster import corner_weights, interpolated, rasterise
from nerf.mesh_parts.visibility import pinhole
from nerf.options import parse_options, resolve
from nerf.rays import Views
from nerf.scene import load_scene

NEAR_ENOUGH = 0.01  # of the size of what is measured: points nearer than this to the other surface count as right
CUBE = 0.002  # of that size: side of the cubes in which one point is kept
ON_SURFACE = 0.01  # units by which a sparse point of the demo scene may miss the tracer's surface
FEWEST = 0.9  # of the sparse points that must lie on it
PARTS = {"everything": 0, "table and things": 1}  # part -> the least number of a thing that belongs to it; the room is 0


def compare(scene_folder, mesh_folder):
    """The errors of a mesh folder's mesh.ply: {part: numbers}. Raises UserError."""
    scene = load_scene(resolve(parse_options([str(scene_folder)]), "cpu"))
    mesh = _read_mesh(Path(mesh_folder))
    views = Views(scene.cameras.select(scene.train), scene.aabb, torch.device("cpu"))
    _check_truth(scene)
    true, things, other = _true_points(views, scene.world)
    seen = _seen_points(views, *mesh, scene.world)
    if not len(seen):
        raise UserError(f"{mesh_folder}: no training camera of {scene_folder} sees anything of the mesh; is it of another scene?")
    to_truth, nearest = cKDTree(true).query(seen)
    mesh_tree, other_tree = cKDTree(seen), cKDTree(other)

    def of_part(first):
        part, belonging = true[things >= first], things[nearest] >= first
        return _errors(part, seen[belonging], to_truth[belonging], mesh_tree, other_tree)

    return {part: of_part(first) for part, first in PARTS.items()}


def _errors(true, seen, to_truth, mesh_tree, other_tree):
    """Numbers of one part.

    Args:
        true [K, 3], seen [L, 3]: points of it; to_truth [L]: distance of the latter from the truth; mesh_tree: cKDTree of all points seen;
        other_tree: of the true points of other rays, which tell what sampling alone makes of a perfect mesh.
    """
    size = float(np.linalg.norm(np.ptp(true, axis=0)))
    to_truth, kept = to_truth[_thinned(seen, CUBE * size)], true[_thinned(true, CUBE * size)]
    (to_mesh, _), (perfect, _) = mesh_tree.query(kept), other_tree.query(kept)
    return {
        "size": size,
        "accuracy": float(to_truth.mean()),
        "completeness": float(to_mesh.mean()),
        "chamfer": float(to_truth.mean() + to_mesh.mean()) / 2,
        "accurate_share": float((to_truth < NEAR_ENOUGH * size).mean()),
        "complete_share": float((to_mesh < NEAR_ENOUGH * size).mean()),
        "sampling": float(perfect.mean()),
        "points": [len(to_truth), len(to_mesh)],
    }


def _true_points(views, world):
    """[K, 3] float64 in file units, where the rays through all pixel centres end; the thing [K] that each lies on; where other rays end."""
    things, random = still_life(0), np.random.default_rng(0)  # the seed is that of the patterns; the shapes are the same for all
    points, which, others = [], [], []
    for i, (width, height) in enumerate(views.sizes.tolist()):
        centres = np.stack(np.meshgrid(np.arange(width), np.arange(height), indexing="xy"), axis=-1).reshape(-1, 2) + 0.5
        for pixels, found in ((centres, points), (centres + random.uniform(-0.5, 0.5, centres.shape), others)):
            rays = views.rays(torch.full((len(pixels),), i), torch.from_numpy(pixels.astype(np.float32)))
            origins = to_file(world, rays.origins.numpy().astype(np.float64)).T
            directions = (rays.directions.numpy().astype(np.float64) @ world.rotation).T
            directions /= np.linalg.norm(directions, axis=0)
            t, thing = nearest_hit(things, origins, directions)
            found.append((origins + t * directions).T)
            if found is points:
                which.append(thing)
    return np.concatenate(points), np.concatenate(which), np.concatenate(others)


def _seen_points(views, vertices, faces, world):
    """[K, 3] float64 in file units: what the pixels of all views see of a mesh with vertices [V, 3] in file units."""
    corners, placed = torch.from_numpy(vertices), torch.from_numpy(world.points(vertices).astype(np.float32))
    found = []
    for i, size in enumerate(views.sizes.tolist()):
        camera, _ = pinhole(views, i, max(size))
        points = camera.project(placed)
        buffer = rasterise(points, faces, camera.width, camera.height)
        pixels = (buffer.face >= 0).nonzero()[:, 0]
        weight = corner_weights(points, faces, buffer, pixels, camera.width)
        found.append(interpolated(corners, faces[buffer.face[pixels]], weight).numpy())
    return np.concatenate(found)


def to_file(world, points):
    """World [K, 3] -> file units [K, 3]: the inverse of a Similarity."""
    return (points - world.offset) @ world.rotation / world.scale + world.centre


def _thinned(points, side):
    """The number of one point in each cube of a side."""
    return np.unique(np.floor(points / side).astype(np.int64), axis=0, return_index=True)[1]


def _read_mesh(folder):
    """vertices [V, 3] float64 in file units, faces [T, 3] int64 tensor."""
    try:
        frame = json.loads((folder / "mesh.json").read_text(encoding="utf-8"))
        file_from_world = np.array(frame["file_from_world"], dtype=np.float64).reshape(4, 4)
        mesh = trimesh.load(folder / "mesh.ply", process=False)
        vertices, faces = np.asarray(mesh.vertices, dtype=np.float64), torch.from_numpy(np.array(mesh.faces, dtype=np.int64))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder}: mesh.ply and mesh.json of --test are not there or cannot be read ({error}); make them with main.py ... --test."
        ) from None
    return vertices @ file_from_world[:3, :3].T + file_from_world[:3, 3], faces


def _check_truth(scene):
    """Raises UserError unless the tracer's surfaces are those of the scene: its sparse points lie on them."""
    things, places = still_life(0), to_file(scene.world, scene.cameras.poses[:, :, 3].astype(np.float64))
    points = np.zeros((0, 3)) if scene.points is None else to_file(scene.world, scene.points.astype(np.float64))
    hit = np.zeros(len(points), dtype=bool)
    for place in places:
        offset = (points - place).T
        distance = np.linalg.norm(offset, axis=0)
        t, _ = nearest_hit(things, np.broadcast_to(place[:, None], offset.shape), offset / distance)
        hit |= np.abs(t - distance) < ON_SURFACE
    if not len(points) or hit.mean() < FEWEST:
        raise UserError(f"{scene.root} is no scene of scripts/make_demo_scene.py, and the truth of others is not known; name a demo scene.")


def table(errors):
    """The errors as lines of text."""
    titles = ("part", "size", "accuracy", "completeness", "Chamfer", "of the mesh right", "of the truth found", "a perfect mesh")
    names = ("accuracy", "completeness", "chamfer")
    rows = [titles]
    for part, found in errors.items():
        shares = (f"{100 * found[name]:.1f} %" for name in ("accurate_share", "complete_share"))
        rows.append((part, f"{found['size']:.2f}", *(f"{found[name]:.4f}" for name in names), *shares, f"{found['sampling']:.4f}"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows)


@tells_user_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description="Compare a mesh of the demo scene with the truth.")
    parser.add_argument("scene", type=Path, metavar="SCENE", help="what scripts/make_demo_scene.py made")
    parser.add_argument("mesh", type=Path, metavar="MESH", help="folder with mesh.ply and mesh.json, as main.py ... --test leaves it")
    arguments = parser.parse_args(argv)
    errors = compare(arguments.scene, arguments.mesh)
    write_file(arguments.mesh / "error.json", (json.dumps(errors, indent=1) + "\n").encode())
    print(table(errors))
    print(f"Right and found: nearer than {100 * NEAR_ENOUGH:g} % of the size. {arguments.mesh / 'error.json'} holds these numbers.")


if __name__ == "__main__":
    sys.exit(main())
