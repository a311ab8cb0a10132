"""The point cloud of a field: where its points are, what is left out, the file, and what is said where there is none."""

import json

import numpy as np
import pytest
import torch
import trimesh

from analytic_field import Ball, model_of, scene_around
from nerf.errors import UserError
from nerf.options import parse_options, resolve
from nerf.points import LEFT_OUT, Cloud, _together, export_points, ply
from nerf.scene.ply import parse_ply

CPU = torch.device("cpu")
CENTRE, RADIUS = np.array([0.1, -0.05, 0.2]), 0.5


class BehindAVeil(Ball):
    """A ball, and a sheet beside it that half of the light passes: rays through both end, as a mean, in mid-air."""

    def density(self, positions):
        veil = torch.where((positions[:, 0] - 0.85).abs() < 0.03, np.log(12.0), -9.0)
        return torch.maximum(super().density(positions), veil)


def exported(tmp_path, count=3000, field=None, scene=None):
    scene = scene or scene_around(bound=2.0)
    options = resolve(parse_options(["scene", "--cuda_ray", "--test", "--max_steps", "512", "--export_points", str(count)]), CPU)
    field = field or Ball(bound=2.0)
    return export_points(model_of(field, options, scene), scene, options, CPU, tmp_path / "points")


def told(tmp_path):
    return json.loads((tmp_path / "points" / "points.json").read_text())


def test_points_lie_on_the_surface_and_look_outwards(tmp_path):
    cloud = exported(tmp_path)
    offset = cloud.positions - CENTRE
    distance = np.linalg.norm(offset, axis=1)
    assert 500 < len(cloud.positions) <= 3000
    assert np.abs(np.median(distance) - RADIUS) < 0.02 and np.abs(distance - np.median(distance)).max() < 0.05
    outwards = offset / distance[:, None]
    assert np.median((cloud.normals * outwards).sum(axis=1)) > 0.97 and np.linalg.norm(cloud.normals, axis=1) == pytest.approx(
        1.0, abs=1e-3
    )
    assert np.abs(cloud.colours - (outwards + 1) / 2).max() < 0.06
    assert outwards.min(axis=0).max() < -0.8 and outwards.max(axis=0).min() > 0.8  # from all sides


def test_the_count_is_told_and_adds_up(tmp_path):
    cloud = exported(tmp_path, count=400)
    facts = told(tmp_path)
    assert facts["points"] == len(cloud.positions) <= 400 and facts["rays"] == 800
    assert facts["points"] + sum(facts[name] for name in LEFT_OUT) == 800
    assert facts["transparent"] > 100


def test_points_outside_the_box_of_the_sparse_points_are_left_out(tmp_path):
    scene = scene_around(bound=2.0)
    scene.points = np.float32([[-0.5, -0.6, -0.3], [0.1, 0.5, 0.7]])
    scene.cameras.poses[:, :, 3] *= 0.5  # the box holds the cameras too
    cloud = exported(tmp_path, scene=scene)
    assert told(tmp_path)["outside"] == 0 and len(cloud.positions)
    scene.aabb = np.float32([-2, -2, -2, 0.1, 2, 2])
    assert exported(tmp_path, scene=scene).positions[:, 0].max() <= 0.1


def test_what_other_views_look_through_is_left_out(tmp_path):
    cloud = exported(tmp_path, field=BehindAVeil(bound=2.0))
    in_the_air = np.linalg.norm(cloud.positions - CENTRE, axis=1) > RADIUS + 0.1
    seen_through = told(tmp_path)["seen_through"]
    assert seen_through > 100 and in_the_air.sum() < 0.5 * seen_through, (seen_through, in_the_air.sum())


def test_what_a_single_view_has_in_its_picture_is_left_out(tmp_path):
    scene = scene_around(bound=2.0)
    scene.train = np.arange(3)
    fog = Ball((0.85 * scene.cameras.poses[0, :, 3]).tolist(), 0.1, bound=2.0)  # right before the first camera, beside what the others see
    with pytest.raises(UserError, match="no points to export"):
        exported(tmp_path, field=fog, scene=scene)


def test_isolated_points_are_left_out():
    random = np.random.default_rng(0)
    together = random.normal(size=(2000, 3)) * 0.1
    keep = _together(np.concatenate([together, [[5, 5, 5]]]))
    assert not keep[-1] and keep[:-1].mean() > 0.97
    assert _together(np.zeros((3, 3))).all()  # too few to judge


@pytest.mark.parametrize("count", [1, 5])
def test_few_points_are_as_good_as_many(tmp_path, count):
    cloud = exported(tmp_path, count=count)
    assert len(cloud.positions) == told(tmp_path)["points"] == count
    assert np.linalg.norm(cloud.positions - CENTRE, axis=1) == pytest.approx(RADIUS, abs=0.05)


def test_the_file(tmp_path):
    random = np.random.default_rng(0)
    cloud = Cloud(*(random.random((50, 3)).astype(np.float32) for _ in range(3)))
    assert np.array_equal(parse_ply(ply(cloud)), cloud.positions)
    (tmp_path / "a.ply").write_bytes(ply(cloud))
    read = trimesh.load(tmp_path / "a.ply")
    assert np.allclose(read.vertices, cloud.positions) and np.abs(np.asarray(read.colors)[:, :3] / 255 - cloud.colours).max() < 0.003


def test_the_same_seed_gives_the_same_points(tmp_path):
    assert np.array_equal(exported(tmp_path, 200).positions, exported(tmp_path, 200).positions)


def test_where_nothing_is_opaque_a_sentence_says_so(tmp_path):
    class Empty(Ball):
        def density(self, positions):
            return super().density(positions) * 0 - 5

    class Broken(Ball):
        def density(self, positions):
            return super().density(positions) * float("nan")

    for field in (Empty(bound=2.0), Broken(bound=2.0)):
        with pytest.raises(UserError, match="no points to export"):
            exported(tmp_path, field=field)
    assert not (tmp_path / "points").exists()
