"""Files of a mesh: PLY, OBJ, glTF, and the frame in which their coordinates are."""

import json

import numpy as np
import trimesh

from nerf.files import write_file

UPRIGHT = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])  # z up to y up, which glTF prescribes


def write_mesh(folder, mesh, normals, colours):
    """Writes mesh.ply, mesh.obj and mesh.glb into a folder, each with vertex colours and normals.

    PLY and OBJ hold world coordinates, z up. glTF holds the same, under a node that turns them y up, and its colours are linear, as that format
    prescribes; the others hold colours as the photos have them.

    Args:
        mesh: Mesh in the world; normals: [V, 3] float32, unit; colours: [V, 3] float32 in [0, 1].
    Raises:
        UserError: a file cannot be written.
    """
    shown = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=normals, vertex_colors=_bytes(colours), process=False)
    write_file(folder / "mesh.ply", shown.export(file_type="ply", vertex_normal=True))
    write_file(folder / "mesh.obj", shown.export(file_type="obj", include_normals=True, include_color=True).encode())
    shown.visual.vertex_colors = _bytes(linear(colours))
    upright = trimesh.Scene()
    upright.add_geometry(shown, geom_name="mesh", node_name="mesh", transform=UPRIGHT)
    write_file(folder / "mesh.glb", upright.export(file_type="glb", include_normals=True))


def linear(colours):
    """sRGB in [0, 1] -> linear light in [0, 1] (IEC 61966-2-1)."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def write_frame(path, scene, **facts):
    """Writes the JSON that says where a file's coordinates are, and how it was made.

    world_from_file and file_from_world are 4x4 matrices between the units of the scene's own camera file and the world, in which the file's
    coordinates are: z up, as in everything that the project writes.

    Args:
        scene: nerf.scene.Scene; facts: plain values, written beside the matrices.
    """
    world = np.eye(4)
    world[:3, :3] = scene.world.scale * scene.world.rotation
    world[:3, 3] = scene.world.points(np.zeros(3))
    content = {"frame": "world, z up", "scale": scene.scale, "world_from_file": world.tolist(), "file_from_world": np.linalg.inv(world).tolist(), **facts}
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())


def _bytes(colours):
    return np.concatenate([np.round(colours * 255).astype(np.uint8), np.full((len(colours), 1), 255, np.uint8)], axis=1)
