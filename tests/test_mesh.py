"""The mesh of a field: its surface, colours, files, memory, and what is said where there is none."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import trimesh

import raymarching
from analytic_field import (
    DENSEST,
    LEVEL,
    Ball,
    model_of,
    scene_around,
)
from conftest import advance
from nerf.errors import UserError
from nerf.exports import make_exports
from nerf.mesh import export_mesh
from nerf.mesh_parts import raster
from nerf.mesh_parts.level import FAINTEST, otsu
from nerf.mesh_parts.raster import Pinhole, rasterise
from nerf.mesh_parts.simplify import joined
from nerf.mesh_parts.space import Space, uncontract
from nerf.mesh_parts.surface import Mesh, Region, extract
from nerf.mesh_parts.visibility import pinhole, seen_faces
from nerf.options import parse_options, resolve
from nerf.rays import Views
from nerf.testing import test as look_at  # pytest would take it for one of its own

CPU = torch.device("cpu")
CENTRE, RADIUS = np.array([0.1, -0.05, 0.2]), 0.5


def options_of(*flags):
    return resolve(parse_options(["scene", "--cuda_ray", *flags]), CPU)


def exported(tmp_path, *flags, field=None, scene=None, **grid):
    """(Mesh, colours) of a ball, written to tmp_path/mesh."""
    options, scene = options_of(*flags), scene or scene_around()
    model = model_of(field or Ball(), options, scene, **grid)
    return export_mesh(model, scene, options, CPU, tmp_path / "mesh")


def everywhere(half=1.0, resolution=48, inner=0.0, size=8):
    return Region(
        half, resolution, inner, torch.ones((size,) * 3, dtype=torch.bool), lambda positions: torch.ones(len(positions), dtype=torch.bool)
    )


def chamfer(a, b):
    """Mean distance between two point sets, both ways."""
    from scipy.spatial import cKDTree

    return (cKDTree(a).query(b)[0].mean() + cKDTree(b).query(a)[0].mean()) / 2


@pytest.mark.parametrize("resolution", [31, 48, 70])
def test_the_surface_of_a_ball_is_its_sphere_whatever_the_blocks(resolution):
    mesh = extract(Ball().density, np.log(LEVEL), everywhere(resolution=resolution))
    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert shape.is_watertight and shape.is_winding_consistent and shape.euler_number == 2
    distance = np.linalg.norm(mesh.vertices - CENTRE, axis=1)
    assert np.abs(distance - RADIUS).max() < 0.1 * (2 / resolution)
    assert shape.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.02)
    assert len(np.unique(mesh.faces)) == len(mesh.vertices)


def test_each_corner_is_looked_at_once():
    field = Ball()
    extract(field.density, np.log(LEVEL), everywhere(resolution=70))
    assert field.looked_at == 71**3


def test_a_surface_ends_where_the_region_ends():
    ball = Ball(centre=(0.0, 0.0, 1.0))
    shape = trimesh.Trimesh(*extract(ball.density, np.log(LEVEL), everywhere()), process=False)
    assert not shape.is_watertight and shape.vertices[:, 2].max() == pytest.approx(1.0, abs=1e-5)
    assert np.linalg.norm(shape.vertices - [0, 0, 1], axis=1) == pytest.approx(RADIUS, abs=0.01)


def test_a_shell_leaves_the_inner_cube_to_another_cascade():
    ball = Ball(centre=(0.0, 0.0, 0.0), radius=1.2, bound=2.0)
    mesh = extract(ball.density, np.log(LEVEL), everywhere(half=2.0, inner=1.0))
    assert np.abs(mesh.vertices).max(axis=1).min() > 0.85
    assert np.linalg.norm(mesh.vertices, axis=1) == pytest.approx(1.2, abs=0.01)
    inner = extract(ball.density, np.log(LEVEL), everywhere())
    both = trimesh.Trimesh(*joined([inner, mesh]), process=False)
    assert both.area == pytest.approx(4 * np.pi * 1.2**2, rel=0.03)


def test_only_what_touches_occupied_cells_is_looked_at(tmp_path):
    scene, options, field = scene_around(), options_of(), Ball(radius=0.2)
    model = model_of(field, options, scene)
    space = Space(model, scene, options, CPU)
    cells = space.occupied(0)
    corner = torch.tensor([[i * 2 / 32 - 1 + 1 / 32 for i in (17, 15, 19)]])  # the cell's middle, near the ball's
    assert cells[17, 15, 19] and field.density(corner) > 0 and not cells[0].any()
    assert int(cells.sum()) == len(space.occupied_cells())
    field.looked_at = 0
    extract(field.density, np.log(LEVEL), Region(1.0, 128, 0.0, cells, space.inside))
    assert field.looked_at < 0.1 * 129**3


def test_memory_is_that_of_a_slab_and_not_of_the_cube():
    """At 400 cells a side the cube has 64 million corners, 257 MB; the arrays alive at once are a slab of 33 planes and the surface."""
    import tracemalloc

    cells = torch.zeros((32,) * 3, dtype=torch.bool)
    cells[16:19, 14:17, 18:21] = True  # a small ball's
    region = Region(1.0, 400, 0.0, cells, lambda positions: torch.ones(len(positions), dtype=torch.bool))
    tracemalloc.start()
    mesh = extract(Ball(radius=0.06).density, np.log(LEVEL), region)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(mesh.faces) > 1000 and peak < 33 * 401**2 * 5 * 1.3


def test_uncontract_inverts_contract():
    points = torch.randn((1000, 3), generator=torch.Generator().manual_seed(0)) * 5
    assert torch.allclose(uncontract(raymarching.contract(points)), points, rtol=1e-3, atol=1e-5)
    assert uncontract(torch.tensor([[2.0, 0.0, 0.0]])).abs().max() > 1e5


def test_otsu_finds_the_gap_between_two_classes():
    values = torch.cat([torch.randn(5000) * 0.3 - 1, torch.randn(2000) * 0.5 + 5])
    assert -0.2 < np.log(otsu(values)) < 4


def test_where_all_densities_are_alike_nothing_is_parted():
    assert otsu(torch.zeros(100)) < FAINTEST and otsu(torch.full((5,), 9.0)) < FAINTEST


def test_export_writes_files_that_others_read(tmp_path):
    mesh, colours = exported(tmp_path, "--mcubes_reso", "64", "--density_thresh", str(LEVEL))
    folder = tmp_path / "mesh"
    assert {path.name for path in folder.iterdir()} == {"mesh.ply", "mesh.obj", "mesh.glb", "mesh.json", "preview.png"}
    true = (mesh.vertices - CENTRE) / np.linalg.norm(mesh.vertices - CENTRE, axis=1, keepdims=True)
    assert np.abs(colours - (true + 1) / 2).max() < 0.03
    for name in ("mesh.ply", "mesh.obj"):
        read = trimesh.load(folder / name, process=False)
        assert np.allclose(read.vertices, mesh.vertices, atol=1e-5) and np.array_equal(read.faces, mesh.faces) and read.is_watertight
        assert np.abs(np.asarray(read.visual.vertex_colors)[:, :3] / 255 - colours).max() < 0.01
        assert (read.vertex_normals * true).sum(axis=1).min() > 0.95
    upright = trimesh.load(folder / "mesh.glb", process=False).to_geometry()
    assert np.allclose(upright.vertices, mesh.vertices[:, [0, 2, 1]] * [1, 1, -1], atol=1e-5) and upright.is_watertight
    facts = json.loads((folder / "mesh.json").read_text())
    assert facts["iso_density"] == LEVEL and facts["faces"] == len(mesh.faces)
    assert np.allclose(np.array(facts["world_from_file"]) @ [1, 2, 3, 1], [0, 0, 0, 1])
    assert np.allclose(np.array(facts["file_from_world"]) @ [1, 0, 0, 1], [3, 2, 3, 1])


def test_the_preview_shows_the_ball(tmp_path):
    import cv2

    exported(tmp_path, "--mcubes_reso", "32")
    picture = cv2.imread(str(tmp_path / "mesh" / "preview.png"))
    shown = (picture < 250).any(axis=2)
    assert picture.shape[1] > 3 * picture.shape[0] / 2
    for row in np.array_split(shown, 2):
        for column in np.array_split(row, 4, axis=1):
            assert 0.05 < column.mean() < 0.6


def test_the_level_comes_from_the_histogram(tmp_path):
    exported(tmp_path, "--mcubes_reso", "32")
    facts = json.loads((tmp_path / "mesh" / "mesh.json").read_text())
    assert FAINTEST <= facts["iso_density"] < DENSEST and "histogram" in facts["iso_source"]


def test_outer_cascades(tmp_path):
    field, scene = Ball(centre=(0.0, 0.0, 0.0), radius=1.8, bound=2.0), scene_around(bound=2.0)
    mesh, _ = exported(tmp_path, "--mcubes_reso", "32", "--env_reso", "64", "--density_thresh", str(LEVEL), field=field, scene=scene)
    assert np.linalg.norm(mesh.vertices, axis=1) == pytest.approx(1.8, abs=0.01)
    with pytest.raises(UserError, match="no surface"):
        exported(tmp_path, "--mcubes_reso", "32", "--env_reso", "0", "--density_thresh", str(LEVEL), field=field, scene=scene)


def test_contracted_space_is_unfolded(tmp_path):
    class Far(Ball):
        def world(self, positions):
            return uncontract(positions)

    field = Far(centre=(3.0, 0.0, 0.0), radius=1.0, bound=2.0)
    scene = scene_around(bound=2.0)
    scene.aabb = np.float32([-100] * 3 + [100] * 3)
    flags = ["--contract", "--mcubes_reso", "16", "--env_reso", "200", "--density_thresh", str(LEVEL)]
    mesh, colours = exported(tmp_path, *flags, field=field, scene=scene, size=64, contract=True)
    offset = mesh.vertices - [3, 0, 0]
    assert np.linalg.norm(offset, axis=1) == pytest.approx(1.0, abs=0.1)  # a cell there is up to 0.3 long
    assert trimesh.Trimesh(*mesh, process=False).is_watertight
    assert np.abs(colours - (offset / np.linalg.norm(offset, axis=1, keepdims=True) + 1) / 2).max() < 0.1


def test_rasterised_triangles_hide_each_other():
    pose = torch.eye(3, 4)
    camera = Pinhole(pose, (-1.0, -1.0, 1.0, 1.0), 20, 20)
    near, far = [[-0.5, -0.5, -1], [0.5, -0.5, -1], [0, 0.5, -1]], [[-9, -9, -2], [9, -9, -2], [0, 9, -2]]
    points = camera.project(torch.tensor(near + far, dtype=torch.float32))
    faces = torch.tensor([[0, 1, 2], [3, 4, 5]])
    buffer = rasterise(points, faces, 20, 20)
    face = buffer.face.view(20, 20)
    assert face[10, 10] == 0 and face[2, 10] == 1 and face[19, 0] == 1 and (face == 0).sum() == pytest.approx(50, abs=6)
    assert buffer.closeness.view(20, 20)[10, 10] == pytest.approx(1.0) and buffer.closeness.view(20, 20)[2, 10] == pytest.approx(0.5)
    assert (rasterise(points, faces, 20, 20, one_sided=True).face >= 0).all()  # both are counter-clockwise, seen from here
    assert (rasterise(points, faces.flip(1), 20, 20, one_sided=True).face == -1).all()
    behind = camera.project(torch.tensor(near, dtype=torch.float32) * torch.tensor([1.0, 1.0, -1.0]))
    assert (rasterise(behind, faces[:1], 20, 20).face == -1).all()


def test_what_is_drawn_in_parts_is_the_same(monkeypatch):
    shape, scene = trimesh.creation.icosphere(2, 0.5), scene_around()
    camera, _ = pinhole(Views(scene.cameras, scene.aabb, CPU), 0, 60)
    points, faces = camera.project(torch.from_numpy(np.float32(shape.vertices))), torch.from_numpy(shape.faces)
    whole = rasterise(points, faces, camera.width, camera.height)
    monkeypatch.setitem(raster.AT_ONCE, "cpu", 7)
    parts = rasterise(points, faces, camera.width, camera.height)
    assert torch.equal(whole.face, parts.face) and torch.equal(whole.closeness, parts.closeness) and (whole.face >= 0).any()


def test_culling_keeps_what_cameras_see():
    inner, outer = trimesh.creation.icosphere(4, 0.2), trimesh.creation.icosphere(5, 0.6)
    mesh = joined([Mesh(np.float32(inner.vertices), inner.faces), Mesh(np.float32(outer.vertices), outer.faces)])
    scene = scene_around(count=12)
    seen = seen_faces(mesh, Views(scene.cameras, scene.aabb, CPU))
    assert not seen[: len(inner.faces)].any() and seen[len(inner.faces) :].all()
    one = seen_faces(mesh, Views(scene.cameras.select([0]), scene.aabb, CPU))[len(inner.faces) :]
    middles = outer.triangles_center @ scene.cameras.poses[0, :, 2]
    assert one[middles > 0.3].all() and not one[middles < 0].any()


def test_a_pinhole_sees_what_the_view_sees():
    scene = scene_around()
    camera, cut = pinhole(Views(scene.cameras, scene.aabb, CPU), 1, 80)
    assert (camera.width, camera.height) == (80, 60) and not cut
    x, y, depth = camera.project(torch.zeros((1, 3)))
    assert (x.item(), y.item(), depth.item()) == pytest.approx((40, 30, 2.0), abs=1e-3)


def empty(model):
    model.sampler.grid.bits.zero_()


def nan(model):
    with torch.no_grad():
        model.field.centre.fill_(float("nan"))


def thin(model):
    model.field.density = lambda positions: torch.full((len(positions),), -1.0)


@pytest.mark.parametrize(("spoil", "said"), [(empty, "no cell"), (nan, "not a number"), (thin, "nowhere denser than 0.368")])
def test_where_there_is_no_surface_a_sentence_says_why(tmp_path, spoil, said):
    options, scene = options_of("--mcubes_reso", "32"), scene_around()
    model = model_of(Ball(), options, scene)
    spoil(model)
    with pytest.raises(UserError, match=said) as error:
        export_mesh(model, scene, options, CPU, tmp_path / "mesh")
    assert str(error.value).count(".") <= 2 and not (tmp_path / "mesh").exists()


def test_nan_in_places_is_found():
    ball = Ball()

    def density(positions):
        return torch.where(positions[:, 0] > 0.9, float("nan"), ball.density(positions))

    with pytest.raises(UserError, match="in places"):
        extract(density, np.log(LEVEL), everywhere())


@pytest.fixture(params=["-O", "-O2"])
def tested(request, make_trainer):
    """A trainer after a few steps, and the options with which --test looks at it."""
    small = [] if request.param == "-O" else ["--num_steps", "32", "16", "8", "--bound", "4"]
    trainer = make_trainer(*small, preset=request.param)
    advance(trainer, 200)
    trainer.options = dataclasses.replace(
        trainer.options,
        test=True,
        test_no_video=True,
        mcubes_reso=48,
        env_reso=32,
        export_points=500,
        given=(*trainer.options.given, "mcubes_reso"),
    )
    return trainer


def test_the_whole_of_test_on_the_demo_scene(tested, capsys):
    look_at(tested)
    said = capsys.readouterr()
    assert "Mesh of" in said.out and "points in" in said.out and said.err == ""
    mesh = trimesh.load(tested.folder / "mesh" / "mesh.ply")
    points = trimesh.load(tested.folder / "points" / "points.ply")
    reach = np.abs(tested.scene.aabb).max() * 1.01
    assert len(mesh.faces) > 100 and np.isfinite(mesh.vertices).all() and np.abs(mesh.vertices).max() <= reach
    assert len(points.vertices) > 50 and np.abs(points.vertices).max() <= reach
    facts = json.loads((tested.folder / "mesh" / "mesh.json").read_text())
    assert np.linalg.det(np.array(facts["world_from_file"])[:3, :3]) == pytest.approx(tested.scene.scale**3, rel=1e-4)


def test_an_empty_grid_costs_a_sentence_and_only_what_was_asked_for_by_name_costs_the_exit_code(make_trainer, capsys):
    trainer = make_trainer()
    trainer.model.sampler.grid.bits.zero_()
    plain = dataclasses.replace(trainer.options, test=True, test_no_video=True, export_points=0)
    trainer.options = plain
    make_exports(trainer, alone=True)
    assert "no cell of the occupancy grid" in capsys.readouterr().err
    trainer.options = dataclasses.replace(plain, export_points=50, given=("path", "export_points"))
    make_exports(trainer, alone=False)
    assert capsys.readouterr().err.count("main.py: There") == 2
    with pytest.raises(UserError, match="no points"):
        make_exports(trainer, alone=True)
    assert capsys.readouterr().err.count("main.py: There") == 1


@pytest.mark.gpu
def test_cuda_finds_the_same_surface(tmp_path):
    cuda, scene = torch.device("cuda"), scene_around()
    options = options_of("--mcubes_reso", "128", "--density_thresh", str(LEVEL), "--mesh_visibility_culling", "--mesh_texture", "256")
    cpu_model, cuda_model = (model_of(Ball(), options, scene) for _ in range(2))
    cuda_model.field.to(cuda)
    cuda_model.sampler.to(cuda)
    on_cpu, _ = export_mesh(cpu_model, scene, options, CPU, tmp_path / "cpu")
    on_cuda, _ = export_mesh(cuda_model, scene, options, cuda, tmp_path / "cuda")
    assert len(on_cuda.faces) == pytest.approx(len(on_cpu.faces), rel=0.01)
    assert np.linalg.norm(on_cuda.vertices - CENTRE, axis=1) == pytest.approx(RADIUS, abs=0.005)
