"""A mesh's texture: how faces are laid out, what is baked into it, its files, and what is said without the library that unwraps."""

import json
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import trimesh

from analytic_field import LEVEL, Ball, model_of, scene_around
from nerf.errors import UserError
from nerf.mesh import export_mesh
from nerf.mesh_parts.surface import Mesh
from nerf.mesh_parts.texture import PIECE, _add_slivers, _within, unwrap
from nerf.options import parse_options, resolve

CPU = torch.device("cpu")
CENTRE = np.array([0.1, -0.05, 0.2])
FLAGS = ("--cuda_ray", "--mcubes_reso", "48", "--density_thresh", str(LEVEL))
needs_library = pytest.mark.skipif(find_spec("xatlas") is None, reason="xatlas is not installed")


def ball(radius, detail=3):
    shape = trimesh.creation.icosphere(detail, radius)
    return Mesh(np.float32(shape.vertices), np.asarray(shape.faces))


def exported(folder, *flags, say=None):
    options, scene = resolve(parse_options(["scene", *FLAGS, *flags]), CPU), scene_around()
    return export_mesh(model_of(Ball(), options, scene), scene, options, CPU, folder, say)


def areas(layout):
    """Texels [T] that each face covers."""
    a, b, c = np.moveaxis(layout.places[layout.faces].astype(np.float64), 1, 0)
    (x, y), (u, v) = (b - a).T, (c - a).T
    return np.abs(x * v - y * u) / 2


def colour_of(normals):
    return (normals / np.linalg.norm(normals, axis=-1, keepdims=True) + 1) / 2


@needs_library
def test_every_face_has_a_place_of_its_own():
    mesh, size = ball(1.5 * PIECE), 400  # in pieces
    layout = unwrap([mesh], [1.0], size)
    assert max(layout.width, layout.height) == size
    assert np.array_equal(layout.source[layout.faces], mesh.faces)
    assert layout.places.min() >= 0 and (layout.places <= [layout.width, layout.height]).all()
    corners = layout.places[layout.faces]
    hits = np.zeros((layout.height, layout.width), dtype=int)
    y, x = np.mgrid[: layout.height, : layout.width] + 0.5
    for triangle in corners:
        (x0, y0), (x1, y1) = np.floor(triangle.min(axis=0)).astype(int), np.ceil(triangle.max(axis=0)).astype(int)
        box = np.s_[y0:y1, x0:x1]
        sides = [(q[0] - p[0]) * (y[box] - p[1]) - (q[1] - p[1]) * (x[box] - p[0]) for p, q in zip(triangle, np.roll(triangle, -1, axis=0))]
        hits[box] += np.all(np.array(sides) > 1e-3, axis=0) | np.all(np.array(sides) < -1e-3, axis=0)
    assert hits.max() == 1 and hits.sum() > 0.4 * hits.size
    share = areas(layout) / trimesh.Trimesh(*mesh, process=False).area_faces
    assert np.percentile(share, 95) < 2 * np.percentile(share, 5)


@needs_library
def test_what_is_far_and_coarse_gets_no_more_texels_than_what_is_near():
    near, far = ball(1.0), Mesh(ball(8.0).vertices + np.float32([30, 0, 0]), ball(8.0).faces)
    layout = unwrap([near, Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64)), far], [0.1, 1.0, 0.8], 400)
    covered = areas(layout)
    assert np.array_equal(layout.source[layout.faces][len(near.faces) :] - len(near.vertices), far.faces)
    assert covered[: len(near.faces)].sum() == pytest.approx(covered[len(near.faces) :].sum(), rel=0.2)


@needs_library
def test_the_texture_shows_the_field_and_is_read_by_others(tmp_path):
    mesh, colours = exported(tmp_path, "--mesh_texture", "256")
    assert {"mesh.ply", "mesh.obj", "mesh.mtl", "texture.png", "mesh.glb", "preview.png"} <= {path.name for path in tmp_path.iterdir()}
    flat = trimesh.load(tmp_path / "mesh.ply", process=False)
    assert np.array_equal(flat.faces, mesh.faces) and np.abs(np.asarray(flat.visual.vertex_colors)[:, :3] / 255 - colours).max() < 0.01
    obj = trimesh.load(tmp_path / "mesh.obj", process=False)
    glb = trimesh.load(tmp_path / "mesh.glb", process=False).to_geometry()
    glb.vertices = glb.vertices[:, [0, 2, 1]] * [1, -1, 1]
    for read, material in ((obj, obj.visual.material), (glb, glb.visual.material.to_simple())):
        assert max(material.image.size) == 256 and len(read.faces) == len(mesh.faces)
        assert np.allclose(read.triangles_center, mesh.vertices[mesh.faces].mean(axis=1), atol=1e-5)
        picture = np.asarray(material.image.convert("RGB"))[::-1] / 255
        column, row = ((read.visual.uv[read.faces].mean(axis=1) * material.image.size).astype(int)).T
        assert np.abs(picture[row, column] - colour_of(read.triangles_center - CENTRE)).max() < 0.08
        everywhere = np.linalg.norm(2 * picture - 1, axis=-1)  # a unit normal, also beside the charts
        assert everywhere.min() > 0.9 and everywhere.max() < 1.1
    assert json.loads((tmp_path / "mesh.json").read_text())["texture"] == list(obj.visual.material.image.size)


def test_a_sliver_gets_a_texel_that_is_free():
    face = torch.tensor([-1, 0, -1, -1])  # a picture of 2 x 2
    corners = torch.tensor([[[1.0, 0.0]] * 3, [[0.1, 0.1]] * 3, [[1.5, 0.5]] * 3, [[0.2, 1.2]] * 3, [[0.3, 1.3]] * 3])
    _add_slivers(face, corners, 2)
    assert face.tolist() == [1, 0, 4, -1]
    weights = _within(torch.tensor([[0.5, 0.7, -0.2], [float("nan")] * 3, [float("inf"), 0.0, -float("inf")]]))
    assert torch.allclose(weights.sum(dim=1), torch.ones(3)) and weights.min() >= 0 and weights[0, 2] == 0


@needs_library
def test_a_mesh_without_a_texture_takes_the_place_of_one_with_it(tmp_path):
    exported(tmp_path, "--mesh_texture", "64")
    assert b"mtllib mesh.mtl" in (tmp_path / "mesh.obj").read_bytes() and (tmp_path / "texture.png").exists()
    exported(tmp_path)
    assert (
        b"mtllib" not in (tmp_path / "mesh.obj").read_bytes()
        and not (tmp_path / "texture.png").exists()
        and not (tmp_path / "mesh.mtl").exists()
    )
    assert json.loads((tmp_path / "mesh.json").read_text())["texture"] is None


def test_without_the_library_there_are_colours_and_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xatlas", None)
    said = []
    exported(tmp_path, "--mesh_texture", "64", say=said.append)
    assert any("pip install xatlas" in line for line in said) and not (tmp_path / "texture.png").exists()
    assert np.ptp(np.asarray(trimesh.load(tmp_path / "mesh.obj", process=False).visual.vertex_colors)[:, :3], axis=0).min() > 100


def test_a_texture_belongs_to_a_mesh():
    with pytest.raises(UserError, match="--mesh_texture shapes the mesh that --test_no_mesh leaves out"):
        parse_options(["scene", "-O", "--test", "--test_no_mesh", "--mesh_texture", "512"])
