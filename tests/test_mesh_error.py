"""scripts/mesh_error.py: what it says of meshes whose error is known, and of folders that it cannot compare."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import mesh_error
from demo_scene.still_life import still_life
from demo_scene.tracer import nearest_hit
from demo_scene.views import Lens, two_rings

WIDTH, HEIGHT = 72, 54  # of conftest's demo scene, whose 24 views these are too
TABLE = "table and things"


@pytest.fixture(scope="module")
def truth():
    """(vertices [V, 3], faces [T, 3]): the depth pictures of the scene's views, traced again; triangles span pixels of one thing."""
    things, vertices, faces, count = still_life(0), [], [], 0
    for view in two_rings(24, Lens("PINHOLE", WIDTH, HEIGHT), 0):
        row, column = np.divmod(np.arange(4 * WIDTH * HEIGHT), 2 * WIDTH)
        directions = view.rays(column / 2 + 0.25, row / 2 + 0.25)
        t, which = nearest_hit(things, np.broadcast_to(view.centre[:, None], directions.shape), directions)
        vertices.append((view.centre[:, None] + t * directions).T)
        number = np.arange(len(t)).reshape(2 * HEIGHT, 2 * WIDTH)
        a, b, c, d = (part.ravel() for part in (number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]))
        whole = (which[a] == which[b]) & (which[a] == which[c]) & (which[a] == which[d])
        faces.append(np.concatenate([np.stack([a, c, b], 1)[whole], np.stack([b, c, d], 1)[whole]]) + count)
        count += len(t)
    return np.concatenate(vertices), np.concatenate(faces)


def write(folder, vertices, faces):
    """A mesh folder whose world is half the file's size, and shifted."""
    folder.mkdir()
    trimesh.Trimesh(vertices / 2 + 1, faces, process=False).export(folder / "mesh.ply")
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    matrix[:3, 3] = -2
    (folder / "mesh.json").write_text(json.dumps({"file_from_world": matrix.tolist()}))
    return folder


def test_the_truth_is_right_and_complete(demo_scene, truth, tmp_path):
    errors = mesh_error.compare(demo_scene, write(tmp_path / "mesh", *truth))
    assert set(errors) == set(mesh_error.PARTS)
    for found in errors.values():
        assert found["chamfer"] == (found["accuracy"] + found["completeness"]) / 2 < 1.6 * found["sampling"] < 0.01 * found["size"]
        assert min(found["accurate_share"], found["complete_share"]) > 0.97
    assert errors["everything"]["size"] == pytest.approx(
        np.hypot(7, np.hypot(7, 3)), rel=0.15
    )  # the room, of which the ceiling is not seen
    assert errors[TABLE]["size"] == pytest.approx(np.hypot(2.4, np.hypot(2.4, 1.66)), rel=0.1)


def test_a_mesh_that_is_too_high_is_wrong_by_as_much(demo_scene, truth, tmp_path):
    vertices, faces = truth
    found = mesh_error.compare(demo_scene, write(tmp_path / "mesh", vertices + [0, 0, 0.05], faces))[TABLE]
    assert 0.03 < found["accuracy"] < 0.05 and 0.03 < found["completeness"] < 0.05 and found["accurate_share"] < 0.5


def test_half_a_mesh_is_right_but_not_complete(demo_scene, truth, tmp_path):
    vertices, faces = truth
    half = faces[(vertices[faces, 0] < 0).all(axis=1)]
    found = mesh_error.compare(demo_scene, write(tmp_path / "mesh", vertices, half))["everything"]
    assert found["accurate_share"] > 0.97 and 0.4 < found["complete_share"] < 0.65


def run(*arguments):
    command = [sys.executable, str(SCRIPTS / "mesh_error.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_prints_and_writes(demo_scene, truth, tmp_path):
    folder = write(tmp_path / "mesh", *truth)
    done = run(demo_scene, folder)
    assert done.returncode == 0 and done.stderr == ""
    kept = json.loads((folder / "error.json").read_text())
    assert f"{kept[TABLE]['chamfer']:.4f}" in next(line for line in done.stdout.splitlines() if line.startswith(TABLE))


def test_what_cannot_be_compared_is_named(demo_scene, truth, tmp_path):
    nothing = run(demo_scene, tmp_path / "nowhere")
    assert nothing.returncode == 1 and nothing.stderr.count("\n") == 1 and "nowhere" in nothing.stderr and "--test" in nothing.stderr
    folder = write(tmp_path / "mesh", *truth)
    with pytest.raises(mesh_error.UserError, match="no scene of scripts/make_demo_scene.py"):
        mesh_error.compare(with_points_elsewhere(demo_scene, tmp_path / "other"), folder)
    far = write(tmp_path / "far", truth[0] + 1000, truth[1])
    with pytest.raises(mesh_error.UserError, match="far: no training camera"):
        mesh_error.compare(demo_scene, far)
    (folder / "mesh.json").write_text("{}")
    with pytest.raises(mesh_error.UserError, match="mesh: mesh.ply and mesh.json"):
        mesh_error.compare(demo_scene, folder)


def with_points_elsewhere(scene, folder):
    """A copy of the scene whose sparse points lie where the tracer has nothing."""
    shutil.copytree(scene, folder)
    file = folder / "sparse" / "0" / "points3D.bin"
    content, at = bytearray(file.read_bytes()), 8
    for _ in range(struct.unpack_from("<Q", content)[0]):
        x, y, z = struct.unpack_from("<3d", content, at + 8)
        struct.pack_into("<3d", content, at + 8, 0.8 * x, 0.8 * y, 0.8 * z + 0.3)
        at += 51 + 8 * struct.unpack_from("<Q", content, at + 43)[0]
    file.write_bytes(content)
    return folder
