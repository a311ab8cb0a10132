"""What is dropped of a mesh, and how faces are merged."""

import sys

import numpy as np
import pytest
import torch
import trimesh

from analytic_field import LEVEL, Ball, model_of, scene_around
from nerf.mesh import export_mesh
from nerf.mesh_parts import simplify
from nerf.mesh_parts.simplify import clean, decimate, joined, vertex_normals, without_folds
from nerf.mesh_parts.surface import Mesh, extract
from test_mesh import CENTRE, CPU, RADIUS, chamfer, everywhere, exported, options_of


def test_small_pieces_are_dropped():
    big, small = trimesh.creation.icosphere(3, 1.0), trimesh.creation.icosphere(2, 0.04)
    both = joined([Mesh(np.float32(big.vertices), big.faces), Mesh(np.float32(small.vertices + 2), small.faces)])
    assert len(clean(both, 8, 5.0).faces) == len(big.faces)
    assert len(clean(both, 8, 0.0).faces) == len(both.faces)
    assert len(clean(both, len(small.faces) + 1, 0.0).faces) == len(big.faces)
    assert clean(Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64)), 8, 5.0).faces.shape == (0, 3)


def test_decimation(tmp_path):
    pytest.importorskip("fast_simplification", reason="fast-simplification is not installed")
    mesh, _ = exported(tmp_path, "--mcubes_reso", "64", "--density_thresh", str(LEVEL), "--decimate_target", "1000")
    assert 900 <= len(mesh.faces) <= 1000
    shape = trimesh.Trimesh(*mesh, process=False)
    assert shape.is_watertight and chamfer(shape.sample(4000), CENTRE + RADIUS * trimesh.creation.icosphere(5).vertices) < 0.012


def rough():
    """A Mesh that winds through the cube like the haze of a field that has learned little."""
    noise = torch.randn((1, 1, 12, 12, 12), generator=torch.Generator().manual_seed(0))

    def density(positions):
        return torch.nn.functional.grid_sample(noise, positions.view(1, 1, 1, -1, 3), align_corners=True).view(-1).exp()

    return extract(density, np.log(1.5), everywhere())


def test_a_rough_mesh_does_not_lie_on_itself():
    fast_simplification = pytest.importorskip("fast_simplification", reason="fast-simplification is not installed")
    mesh = rough()
    faces = fast_simplification.simplify(mesh.vertices, np.int32(mesh.faces), target_count=len(mesh.faces) // 10)[1]
    assert np.unique(np.sort(faces, axis=1), axis=0, return_counts=True)[1].max() > 1  # what is left out
    fewer = decimate(mesh, len(mesh.faces) // 10, len(mesh.faces))
    assert 0.08 < len(fewer.faces) / len(mesh.faces) <= 0.1
    assert np.unique(np.sort(fewer.faces, axis=1), axis=0, return_counts=True)[1].max() == 1
    assert np.linalg.norm(vertex_normals(fewer), axis=1) == pytest.approx(1.0, abs=1e-5)


def test_faces_upon_each_other_cancel():
    pair, three, twice, single = [[0, 1, 2], [2, 1, 0]], [[4, 3, 5], [3, 5, 4], [4, 5, 3]], [[6, 7, 8], [7, 8, 6]], [[0, 2, 9]]
    assert without_folds(np.array(pair + three + twice + single)).tolist() == [[4, 3, 5], [6, 7, 8], [0, 2, 9]]
    assert without_folds(np.zeros((0, 3), np.int64)).shape == (0, 3)


def test_normals_have_length_1_where_faces_cancel_and_where_there_are_none():
    corners = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0], [0, 0, 3], [9, 9, 9]])
    normals = vertex_normals(Mesh(corners, np.array([[0, 1, 2], [2, 1, 0]])))  # a fin
    assert np.abs(normals[:3]).tolist() == [[0, 0, 1]] * 3 and normals[5].tolist() == [0, 0, 1]
    larger = vertex_normals(Mesh(corners, np.array([[0, 1, 2], [2, 1, 0], [0, 4, 1], [4, 0, 1]])))
    assert np.abs(larger[0]).tolist() == [0, 1, 0] and np.abs(larger[2]).tolist() == [0, 0, 1]
    assert vertex_normals(Mesh(corners, np.array([[0, 1, 3]]))).tolist() == [[0, 0, 1]] * 6  # no area


def test_a_target_that_cannot_be_met_is_told(tmp_path):
    pytest.importorskip("fast_simplification", reason="fast-simplification is not installed")
    said, options, scene = [], options_of("--mcubes_reso", "32", "--decimate_target", "1"), scene_around()
    mesh, _ = export_mesh(model_of(Ball(), options, scene), scene, options, CPU, tmp_path, said.append)
    assert f"The mesh keeps {len(mesh.faces)} of its" in said[0] and "--decimate_target 1 cannot be met" in said[0]


def test_a_large_mesh_is_decimated_slab_by_slab(monkeypatch):
    pytest.importorskip("fast_simplification", reason="fast-simplification is not installed")
    ball = trimesh.creation.icosphere(5, RADIUS)
    monkeypatch.setattr(simplify, "AT_ONCE", 5000)
    mesh = decimate(Mesh(np.float32(ball.vertices), ball.faces), 2000, len(ball.faces))
    shape = trimesh.Trimesh(*mesh, process=False)
    assert 1900 <= len(mesh.faces) <= 2000 and shape.is_watertight
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - RADIUS).max() < 0.01 * RADIUS
    slabs = simplify._reduced_by_slabs(Mesh(np.float32(ball.vertices), ball.faces), 5000)
    assert 4500 <= len(slabs.faces) <= 5000 and trimesh.Trimesh(*slabs, process=False).is_watertight
    monkeypatch.setattr(simplify, "AT_ONCE", 5003)  # five slabs of 1,000 faces each: fewer than the 5,002 that may be kept
    assert len(decimate(Mesh(np.float32(ball.vertices), ball.faces), 5002, len(ball.faces)).faces) == 5000


def test_without_the_library_nothing_is_decimated(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    said, options, scene = [], options_of("--mcubes_reso", "32", "--decimate_target", "100"), scene_around()
    mesh, _ = export_mesh(model_of(Ball(), options, scene), scene, options, CPU, tmp_path, said.append)
    assert len(mesh.faces) > 100 and any("pip install fast-simplification" in line for line in said)
