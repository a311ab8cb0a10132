"""A mesh of a trained field: the surface of equal density, cleaned, coloured and written to files."""

import time
from pathlib import Path

import numpy as np
import torch

from nerf.errors import UserError
from nerf.evaluation import Progress
from nerf.mesh_parts.colours import surface_colours
from nerf.mesh_parts.files import write_frame, write_mesh, write_textured
from nerf.mesh_parts.level import iso_level
from nerf.mesh_parts.preview import write_preview
from nerf.mesh_parts.raster import interpolated
from nerf.mesh_parts.simplify import clean, decimate, joined, vertex_normals
from nerf.mesh_parts.space import Space
from nerf.mesh_parts.surface import Mesh, Region, extract, used
from nerf.mesh_parts.texture import bake, unwrap
from nerf.mesh_parts.visibility import seen_faces, split
from nerf.rays import Views


def export_mesh(model, scene, options, device, folder, report=None):
    """Writes mesh.ply, mesh.obj, mesh.glb, mesh.json and preview.png into a folder: the mesh of a model's field, in the world.

    With --mesh_texture, mesh.obj and mesh.glb have a texture in place of colours a vertex, and mesh.mtl and texture.png go with the former.

    The inner cube is looked at with --mcubes_reso cells a side, each further cascade with --env_reso; only where the occupancy grid (for
    proposal networks, one made of what the finest sees) has something, and within the scene's box. The surface ends, open, where these end;
    between cascades, whose cells differ, a crack may remain. Small pieces are judged, and faces merged, in each cascade apart and before
    contracted space is unfolded, so that what is far does not outweigh what is near.

    Args:
        model: nerf.model.Model, in evaluation mode; scene: nerf.scene.Scene; options: nerf.options.Options, resolved; device: torch.device.
        report: print or alike, or None.
    Returns:
        (Mesh, colours [V, 3] float32 in [0, 1]).
    Raises:
        UserError: there is no surface: nothing is occupied, nothing dense enough, or the density is not a number.
    """
    started, folder, say = time.perf_counter(), Path(folder), report or (lambda text: None)
    space = Space(model, scene, options, device)
    given = options.density_thresh if "density_thresh" in options.given else None
    level, source = iso_level(model.field.density, space, given, options.seed)
    resolutions = [options.mcubes_reso] + [options.env_reso] * (len(space.half_sides) - 1)
    meshes = list(_surfaces(model.field.density, space, float(np.log(level)), resolutions, options))
    views = Views(scene.cameras.select(scene.train), scene.aabb, device)
    if options.mesh_visibility_culling:
        meshes = _culled(meshes, space, views, options, report)
    meshes = _decimated(meshes, options.decimate_target, say)
    mesh = joined([_in_world(mesh, space) for mesh in meshes])
    if not len(mesh.faces):
        raise UserError(
            f"There is no mesh to make: no surface at density {level:.3g} is left; give another --density_thresh, or lower --clean_min_d."
        )
    normals = vertex_normals(mesh)

    def colours_at(points, towards):
        return surface_colours(model.field, space, points, towards, space.spacing(points, resolutions), views.poses[:, :, 3])

    colours = colours_at(*(torch.from_numpy(array).to(device) for array in (mesh.vertices, normals)))
    write_mesh(folder, mesh, normals, colours)
    look, side = _vertex_look(mesh, colours, device), None
    if layout := _layout(meshes, space, resolutions, options.mesh_texture, say):
        picture, side = bake(mesh, normals, layout, colours_at, device), [layout.width, layout.height]
        write_textured(folder, mesh, normals, layout, picture.cpu().numpy())
        look = layout.look(picture)
    write_preview(folder / "preview.png", mesh, look, views)
    facts = {
        "iso_density": level,
        "iso_source": source,
        "cells_a_side": resolutions,
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
        "texture": side,
    }
    write_frame(folder / "mesh.json", scene, **facts, seconds=round(time.perf_counter() - started, 2))
    textured = f", texture {side[0]}x{side[1]}," if side else ""
    say(
        f"Mesh of {len(mesh.vertices)} vertices and {len(mesh.faces)} faces{textured} at density {level:.3g} ({source}), "
        f"{time.perf_counter() - started:.1f} s: {folder / 'mesh.ply'}, mesh.obj, mesh.glb and preview.png"
    )
    return mesh, colours


def _surfaces(log_density, space, level, resolutions, options):
    """A cleaned Mesh of each cascade, in field space."""
    inner = 0.0
    for cascade, (half, resolution) in enumerate(zip(space.half_sides, resolutions, strict=True)):
        if resolution:
            region = Region(half, resolution, inner, space.occupied(cascade), space.inside)
            yield clean(extract(log_density, level, region), options.clean_min_f, options.clean_min_d)
        else:
            yield Mesh(np.zeros((0, 3), dtype=np.float32), np.zeros((0, 3), dtype=np.int64))
        inner = half


def _culled(meshes, space, views, options, report):
    """The meshes without the faces that no view sees, and without the crumbs that this leaves."""
    progress = Progress(report, len(views.poses), "views of the mesh")
    kept = split(seen_faces(joined([_in_world(mesh, space) for mesh in meshes]), views, progress), meshes)
    parts = [Mesh(*used(mesh.vertices, mesh.faces[mask])) for mesh, mask in zip(meshes, kept, strict=True)]
    return [clean(mesh, options.clean_min_f, options.clean_min_d) for mesh in parts]


def _decimated(meshes, target, say):
    total = sum(len(mesh.faces) for mesh in meshes)
    if not target or total <= target:
        return meshes
    try:
        fewer = [decimate(mesh, target, total) for mesh in meshes]
    except ImportError:
        say(f"The mesh keeps its {total} faces: pip install fast-simplification lets --decimate_target make them fewer.")
        return meshes
    left = sum(len(mesh.faces) for mesh in fewer)
    if left > target:
        say(f"The mesh keeps {left} of its {total} faces: merging more would fold it or pull in its borders, so that --decimate_target {target} cannot be met.")
    return fewer


def _layout(meshes, space, resolutions, longest, say):
    """The Layout of a texture, or None where none is wanted or none can be made."""
    if not longest:
        return None
    try:
        return unwrap(meshes, space.cells(resolutions), longest)
    except ImportError:
        say("The mesh has no texture, but colours a vertex: pip install xatlas lets --mesh_texture make one.")
        return None


def _vertex_look(mesh, colours, device):
    faces, colours = (torch.from_numpy(array).to(device) for array in (mesh.faces, colours))
    return lambda face, weight: interpolated(colours, faces[face], weight)


def _in_world(mesh, space):
    return Mesh(space.to_world(torch.from_numpy(mesh.vertices)).numpy(), mesh.faces)
