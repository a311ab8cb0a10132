"""Smaller meshes: pieces that are too small are dropped, and faces merged where the surface is flat."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nerf.mesh_parts.surface import Mesh, used

AT_ONCE = 4_000_000  # faces that are merged together: each takes some 280 bytes until it is
CANCELLED = 1e-9  # share of their lengths below which the sum of normals is rounding
UP = (0.0, 0.0, 1.0)


def clean(mesh, fewest, share):
    """The mesh without its small pieces.

    Args:
        mesh: Mesh; fewest: a connected piece of fewer faces is dropped; share: so is one whose bounding box has a diagonal below this many
            per cent of the mesh's.
    """
    vertices, faces = mesh
    if not len(faces):
        return mesh
    ends = np.concatenate([faces[:, :2], faces[:, 1:]]).astype(np.int32)
    links = coo_array((np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1])), shape=(len(vertices),) * 2)
    pieces, piece = connected_components(links, directed=False)
    order = np.argsort(piece, kind="stable")
    starts = np.searchsorted(piece[order], np.arange(pieces))
    grouped = vertices[order]
    diagonal = np.linalg.norm(np.maximum.reduceat(grouped, starts) - np.minimum.reduceat(grouped, starts), axis=1)
    whole = np.linalg.norm(np.ptp(vertices, axis=0))
    of_face = piece[faces[:, 0]]
    kept = (np.bincount(of_face, minlength=pieces) >= fewest) & (diagonal >= share / 100 * whole)
    return Mesh(*used(vertices, faces[kept[of_face]]))


def decimate(mesh, target, total):
    """The mesh with its share of faces or fewer, by the quadric error of merged edges (Garland and Heckbert 1997).

    More are left where merging any other edge would turn a face over or pull in an open border. A mesh of more than AT_ONCE faces is brought down to so many slab by
    slab, with the borders between slabs as they are, and then as a whole. Edges are merged without a look at the topology: a rough surface
    may touch itself afterwards, at vertices and edges that several sheets share.

    Args:
        mesh: Mesh, one of several; target: faces that all together may have; total: faces that they have.
    Raises:
        ImportError: fast_simplification is not installed.
    """
    share = target * len(mesh.faces) // total
    if share >= len(mesh.faces):
        return mesh
    if len(mesh.faces) > AT_ONCE > share:
        mesh = _reduced_by_slabs(mesh, AT_ONCE)
    return _reduced(mesh, min(share, len(mesh.faces)))


def _reduced(mesh, count, preserve_border=False):
    from fast_simplification import simplify

    vertices, faces = simplify(mesh.vertices, mesh.faces.astype(np.int32), target_count=count, preserve_border=preserve_border)
    faces = faces.astype(np.int64)
    flat = (faces[:, 0] == faces[:, 1]) | (faces[:, 1] == faces[:, 2]) | (faces[:, 2] == faces[:, 0])
    return Mesh(*used(vertices.astype(np.float32), without_folds(faces[~flat])))


def without_folds(faces):
    """Faces [T, 3] without those that lie on each other.

    Where merging closes a surface upon itself, two sheets have a face each on the same three vertices, seen from opposite sides. Such two
    bound nothing, and their normals cancel; one stays where more look to one side than to the other.
    """
    turned = np.take_along_axis(faces, (faces.argmin(axis=1)[:, None] + np.arange(3)) % 3, axis=1)  # the lowest first, as counter-clockwise as before
    side = np.where(turned[:, 1] < turned[:, 2], 1, -1)
    _, group = np.unique(np.sort(faces, axis=1), axis=0, return_inverse=True)
    group = group.ravel()
    leading = np.flatnonzero(side * np.bincount(group, side)[group] > 0)
    return faces[leading[np.sort(np.unique(group[leading], return_index=True)[1])]]


def _reduced_by_slabs(mesh, count):
    """The mesh with about `count` faces; slabs of AT_ONCE faces lie side by side along its longest axis."""
    place = mesh.vertices[mesh.faces[:, 0], np.argmax(np.ptp(mesh.vertices, axis=0))]
    slabs = np.array_split(np.argsort(place), -(-len(place) // AT_ONCE))
    share = count / len(mesh.faces)
    parts = [_reduced(Mesh(*used(mesh.vertices, mesh.faces[slab])), round(share * len(slab)), preserve_border=True) for slab in slabs]
    vertices, faces = joined(parts)
    rows = np.ascontiguousarray(vertices).view([("", np.float32)] * 3)[:, 0]  # the vertices between two slabs are there twice, equal to the last bit
    _, first, number = np.unique(rows, return_index=True, return_inverse=True)
    return Mesh(vertices[first], number[faces])


def joined(meshes):
    """One Mesh of several, their vertices side by side."""
    firsts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    vertices = np.concatenate([mesh.vertices for mesh in meshes])
    return Mesh(vertices, np.concatenate([mesh.faces + first for mesh, first in zip(meshes, firsts)]))


def vertex_normals(mesh):
    """Unit normals [V, 3] float32 pointing outwards, means of the faces around weighted by area.

    Where these cancel, the normal is that of the largest face around; where there is none of any area, straight up. So all have length 1,
    as glTF demands.
    """
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    areas, rows, count = np.linalg.norm(normals, axis=1), mesh.faces.ravel(), len(mesh.vertices)
    sums = np.stack([np.bincount(rows, np.repeat(normals[:, axis], 3), count) for axis in range(3)], axis=1)
    cancelled = np.linalg.norm(sums, axis=1) <= CANCELLED * np.bincount(rows, np.repeat(areas, 3), count)
    if cancelled.any():
        around = np.flatnonzero(cancelled[mesh.faces].any(axis=1) & (areas > 0))
        around = around[np.argsort(areas[around])]
        largest = np.tile(UP, (count, 1))
        largest[mesh.faces[around]] = normals[around, None]  # of several, the last is kept
        sums[cancelled] = largest[cancelled]
    return (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)
