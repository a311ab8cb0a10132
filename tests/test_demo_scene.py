"""The demo scene: its shapes against literal tests, its pictures against its cameras, its files against COLMAP's format."""

import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import make_demo_scene
from demo_scene.colmap_model import quaternion
from demo_scene.patterns import Noise, hashed
from demo_scene.shapes import Box, Cylinder, Revolution, Room, Sphere, Torus, dot, unit
from demo_scene.still_life import still_life
from demo_scene.tracer import is_shadowed, nearest_hit
from demo_scene.views import Lens, two_rings

SMALL = ["--views", "16", "--width", "60", "--height", "44", "--points", "400"]


def inside_revolution(p):
    return (p[2] > 0) & (p[2] < 0.8) & (np.hypot(p[0], p[1]) < 0.2 + 0.1 * np.sin(6 * p[2]))


SOLIDS = {
    "sphere": (Sphere((0.1, 0.0, 0.2), 0.4), lambda p: np.linalg.norm(p - [[0.1], [0], [0.2]], axis=0) < 0.4),
    "box": (Box((0.0, 0.1, 0.0), (0.3, 0.2, 0.1)), lambda p: np.all(np.abs(p - [[0], [0.1], [0]]) < [[0.3], [0.2], [0.1]], axis=0)),
    "cylinder": (Cylinder((0, 0, -0.2), 0.3, 0.5), lambda p: (np.hypot(p[0], p[1]) < 0.3) & (np.abs(p[2] - 0.05) < 0.25)),
    "torus": (Torus((0, 0, 0.1), 0.3, 0.1), lambda p: np.hypot(np.hypot(p[0], p[1]) - 0.3, p[2] - 0.1) < 0.1),
    "revolution": (Revolution((0, 0, 0), 0.8, lambda z: 0.2 + 0.1 * np.sin(6 * z)), inside_revolution),
}


@pytest.mark.parametrize("name", SOLIDS)
def test_hits_are_where_a_fine_march_first_gets_inside(name):
    shape, inside = SOLIDS[name]
    random = hashed(5, 6 * 150).reshape(6, 150) * 2 - 1
    origins, directions = unit(random[:3]) * 1.5, unit(random[3:] * 0.4 - unit(random[:3]))
    t = shape.hit(origins, directions)
    steps = np.linspace(0.0, 3.5, 3501)
    entered = np.array([inside(origins + s * directions) for s in steps])
    expected = np.where(entered.any(axis=0), steps[entered.argmax(axis=0)], np.inf)
    cut = entered.sum(axis=0)  # steps inside: a ray that only grazes the solid may be judged either way
    assert np.isfinite(t).sum() > 30
    assert np.array_equal(np.isfinite(t)[cut > 60], np.ones((cut > 60).sum(), bool))
    assert not np.isfinite(t)[cut == 0].any()
    both = np.isfinite(t) & np.isfinite(expected) & (cut > 60)
    assert np.abs(t[both] - expected[both]).max() < 3e-3
    normals = shape.normal((origins + t * directions)[:, both])
    assert np.allclose(dot(normals, normals), 1)
    assert (dot(normals, directions[:, both]) < 1e-9).all()


def test_every_ray_from_within_hits_the_room():
    room = Room(2.0, -1.0, 1.5)
    directions = unit(hashed(1, 3 * 500).reshape(3, 500) * 2 - 1)
    points = room.hit(np.zeros((3, 500)), directions) * directions
    on_wall = np.abs(np.hypot(points[0], points[1]) - 2) < 1e-9
    assert (on_wall | (np.abs(points[2] + 1) < 1e-9) | (np.abs(points[2] - 1.5) < 1e-9)).all()
    assert (dot(room.normal(points), directions) < 0).all()


def test_culling_by_bounding_spheres_loses_no_hit():
    things = still_life(0)
    view = two_rings(16, Lens("PINHOLE", 60, 44), 0)[3]
    row, column = np.divmod(np.arange(60 * 44), 60)
    directions = view.rays(column + 0.5, row + 0.5)
    origins = np.broadcast_to(view.centre[:, None], directions.shape)
    t, which = nearest_hit(things, origins, directions)
    with np.errstate(invalid="ignore"):
        every = np.array([np.nan_to_num(thing.shape.hit(origins, directions), nan=np.inf) for thing in things])
    assert np.array_equal(t, every.min(axis=0))
    assert len(np.unique(which)) >= 7


def test_what_lies_under_a_ball_is_shadowed():
    things = [None, type("Thing", (), {"shape": Sphere((0, 0, 1), 0.3)})]
    points = np.array([[0.0, 0.5], [0.0, 0.0], [0.0, 0.0]])
    up = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    assert is_shadowed(things, points, up, np.array([2.0, 2.0])).tolist() == [True, False]
    assert is_shadowed(things, points, up, np.array([0.5, 0.5])).tolist() == [False, False]  # the lamp hangs below the ball


def test_noise_repeats_and_is_smooth():
    x, y, z = hashed(3, 300).reshape(3, 100) * 8
    noise = Noise(7)
    assert np.array_equal(noise(x, y, z), Noise(7)(x, y, z))
    assert not np.allclose(noise(x, y, z), Noise(8)(x, y, z))
    assert np.allclose(noise(x, y, z), noise(x + 32, y - 32, z))
    assert np.abs(noise(x + 1e-4, y, z) - noise(x, y, z)).max() < 1e-3
    assert -1 <= noise(x, y, z).min() < -0.2 < 0.2 < noise(x, y, z).max() <= 1


def test_undistorted_points_distort_back():
    lens = Lens("OPENCV", 200, 150)
    x, y = hashed(2, 200).reshape(2, 100) - 0.5
    assert np.allclose(lens.distort(*lens.undistort(x, y)), (x, y), atol=1e-8)


def test_quaternions_of_all_turns():
    for vector in [*unit(hashed(4, 300).reshape(3, 100) - 0.5).T, np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([0, 0, 1.0])]:
        for angle in (0.0, 0.3, 2.0, np.pi):
            rotation = cv2.Rodrigues(vector * angle)[0]
            assert np.allclose(rotation_of(quaternion(rotation)), rotation, atol=1e-9)


def rotation_of(q):
    w, v = q[0], np.array(q[1:])
    cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


@pytest.fixture(scope="module", params=["PINHOLE", "OPENCV"])
def scene(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "scene"
    make_demo_scene.main([str(folder), *SMALL, "--lens", request.param, "--processes", "1"])
    return folder


def read_model(folder):
    """The three files, read field by field as COLMAP's documentation of the format lists them."""
    data = (folder / "sparse/0/cameras.bin").read_bytes()
    count, _, model, width, height = struct.unpack_from("<QIiQQ", data)
    camera = {"count": count, "model": model, "size": (width, height), "parameters": np.frombuffer(data, "<f8", offset=8 + 24)}
    data, images, at = (folder / "sparse/0/images.bin").read_bytes(), {}, 8
    for _ in range(struct.unpack_from("<Q", data)[0]):
        number, *pose, _ = struct.unpack_from("<I7dI", data, at)
        end = data.index(b"\0", at + 64)
        name, at = data[at + 64 : end].decode(), end + 1
        size = struct.unpack_from("<Q", data, at)[0]
        rows = np.frombuffer(data, [("u", "<f8"), ("v", "<f8"), ("point", "<i8")], count=size, offset=at + 8)
        images[number], at = (name, rotation_of(pose[:4]), np.array(pose[4:]), rows), at + 8 + 24 * size
    assert at == len(data)
    data, points, at = (folder / "sparse/0/points3D.bin").read_bytes(), {}, 8
    for _ in range(struct.unpack_from("<Q", data)[0]):
        number, x, y, z, r, g, b, _, size = struct.unpack_from("<Q3d3BdQ", data, at)
        track, at = np.frombuffer(data, "<u4", count=2 * size, offset=at + 51).reshape(size, 2), at + 51 + 8 * size
        points[number] = (np.array([x, y, z]), (r, g, b), track)
    assert at == len(data)
    return camera, images, points


def test_model_and_pictures_belong_together(scene):
    camera, images, points = read_model(scene)
    assert camera["count"] == 1 and camera["size"] == (60, 44)
    assert len(images) == 16 and len(points) > 200
    fx, fy, cx, cy, *distortion = camera["parameters"]
    assert len(distortion) == (4 if camera["model"] == 4 else 0)
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    colour_errors = []
    for number, (name, rotation, translation, rows) in images.items():
        picture = cv2.imread(str(scene / "images" / name))[..., ::-1].astype(int)
        assert picture.shape == (44, 60, 3)
        assert len(rows) > 50
        positions = np.array([points[point][0] for point in rows["point"]])
        expected, _ = cv2.projectPoints(positions, cv2.Rodrigues(rotation)[0], translation, matrix, np.array(distortion or [0.0] * 4))
        assert np.abs(expected[:, 0] - np.stack([rows["u"], rows["v"]], axis=1)).max() < 1e-5
        for row, (u, v, point) in enumerate(rows):
            assert [number, row] in points[point][2].tolist()
            colour_errors.append(np.abs(picture[int(v), int(u)] - points[point][1]).mean())
    assert np.median(colour_errors) < 12  # highlights, edges and soft shadows make some differ


def test_cameras_surround_the_scene_and_held_out_views_are_on_both_rings(scene):
    _, images, _ = read_model(scene)
    centres = np.array([-rotation.T @ translation for _, rotation, translation, _ in images.values()])
    assert np.hypot(centres[:, 0], centres[:, 1]).min() > 1.5
    assert sorted(np.unique(np.sign(centres[:, :2]), axis=0).tolist()) == [[-1, -1], [-1, 1], [1, -1], [1, 1]]
    held_out = centres[np.argsort([name for name, *_ in images.values()])][::8, 2]
    assert held_out.min() < 1.0 < held_out.max()


def test_same_bytes_again_with_another_number_of_processes(tmp_path):
    for name, processes in (("one", "1"), ("two", "2")):
        make_demo_scene.main([str(tmp_path / name), *SMALL, "--processes", processes])
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 16 + 3
    assert files == sorted(path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*") if path.is_file())
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_another_seed_makes_other_pictures():
    first, second = (two_rings(8, Lens("PINHOLE", 60, 44), seed)[0].centre for seed in (0, 1))
    assert not np.allclose(first, second)


def run_script(*arguments):
    command = [sys.executable, str(SCRIPTS / "make_demo_scene.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_bad_arguments_are_named(tmp_path):
    few = run_script(str(tmp_path / "out"), "--views", "3")
    assert few.returncode == 2 and "--views" in few.stderr and "8 or more" in few.stderr
    (tmp_path / "file").write_text("")
    blocked = run_script(str(tmp_path / "file"))
    assert blocked.returncode == 1 and len(blocked.stderr.splitlines()) == 1 and "file" in blocked.stderr
