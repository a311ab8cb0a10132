"""The transforms.json reader: its three dialects, lenses by file and by frame, and files that are not what they should be."""

import copy
import json
import math
import random
import shutil

import numpy as np
import pytest

from nerf.errors import UserError
from nerf.scene import FISHEYE, PERSPECTIVE, load_scene
from nerf.scene.transforms import read_transforms
from scene_files import (
    options,
    ring_scene,
    ring_transforms,
    save_transforms,
    write_mask,
    write_photo,
)


def nerf(root, **changes):
    return options(root, data_format="nerf", **changes)


def test_instant_ngp(tmp_path):
    content = ring_transforms(tmp_path, count=17)
    content |= {"k1": 0.01, "k2": 0.02, "p1": 0.03, "p2": 0.04, "aabb_scale": 4, "w": 128, "h": 96}
    save_transforms(tmp_path, content)
    scene = load_scene(nerf(tmp_path))
    assert np.allclose(scene.cameras.intrinsics, [30, 30.5, 16, 12])
    assert np.allclose(scene.cameras.distortion, [0.01, 0.02, 0, 0, 0.03, 0.04]) and (scene.cameras.lens == PERSPECTIVE).all()
    assert scene.val.tolist() == [0, 8, 16] and len(scene.train) == 14
    assert np.allclose(scene.cameras.poses[:, :, 1].mean(axis=0)[:2], 0, atol=1e-6)


@pytest.mark.parametrize("head, centre, half", [
    ({"aabb_scale": 2}, (0, 0, 0), 1 / 0.33), ({"aabb_scale": 8, "scale": 1}, (0, 0, 0), 4), ({"aabb_scale": 2, "scale": 0.5, "offset": [0.5, 0, 0.5]}, (0, 1, 0), 2)])
def test_cube_that_instant_ngp_states(tmp_path, head, centre, half):
    """Its centre is the world's, nothing is sampled outside it but up to the cameras, and the bound has room for it."""
    save_transforms(tmp_path, ring_transforms(tmp_path) | head)
    capture, scene = read_transforms(tmp_path, nerf(tmp_path)), load_scene(nerf(tmp_path))
    assert np.allclose(capture.region, [np.subtract(centre, half), np.add(centre, half)])
    world = scene.world
    assert np.allclose(world.centre, centre)
    corners = world.points(capture.region)
    margin = scene.aabb.reshape(2, 3) - [np.minimum(corners.min(axis=0), scene.cameras.poses[:, :, 3].min(axis=0)), np.maximum(corners.max(axis=0), scene.cameras.poses[:, :, 3].max(axis=0))]
    assert (np.abs(margin) < 0.2 * half * scene.scale).all() and (margin[0] <= 0).all() and (margin[1] >= 0).all()
    assert scene.bound / 2 < max(1.01, half * scene.scale) <= scene.bound
    tight = load_scene(nerf(tmp_path, bound=0.5))
    assert tight.bound == 0.5 and np.abs(tight.aabb).max() == 0.5


@pytest.mark.parametrize("head", [{"aabb_scale": "wide"}, {"aabb_scale": 0}, {"aabb_scale": float("nan")}, {"aabb_scale": 10**400}, {"aabb_scale": 4, "scale": 0},
                                  {"aabb_scale": 4, "offset": [1, 2]}, {"aabb_scale": 4, "offset": {}}, {"aabb_scale": 4, "offset": [[1], [2, 3]]}, {"aabb_scale": 4, "offset": [1e300] * 3}])
def test_cube_that_is_none(tmp_path, head):
    save_transforms(tmp_path, ring_transforms(tmp_path) | head)
    scene = load_scene(nerf(tmp_path))
    assert scene.bound == 2 and any("state no cube and are ignored" in note for note in scene.notes)


def test_nerfstudio(tmp_path):
    """A lens a frame overrides the head of the file; a mask is read; depths and the applied transform are named and left alone."""
    content = ring_transforms(tmp_path)
    content |= {"camera_model": "OPENCV", "applied_transform": np.eye(4)[:3].tolist()}
    content["frames"][2] |= {"camera_model": "OPENCV_FISHEYE", "fl_x": 50, "fl_y": 51, "cx": 30, "cy": 20, "k1": 0.1, "k4": 0.4}
    content["frames"][3] |= {"mask_path": "masks/003.png", "depth_file_path": "depths/003.png", "w": 32, "h": 24}
    save_transforms(tmp_path, content)
    with pytest.raises(UserError, match="mask_path of images/003.png names .*masks/003.png, which is not there"):
        load_scene(nerf(tmp_path))
    mask = np.arange(48 * 64).reshape(48, 64) % 7 != 0
    write_mask(tmp_path / "masks" / "003.png", mask)
    scene = load_scene(nerf(tmp_path))
    assert scene.cameras.lens.tolist() == [0, 0, FISHEYE, 0, 0, 0, 0, 0, 0]
    assert np.allclose(scene.cameras.intrinsics[[0, 2, 3]], [[60, 61, 32, 24], [50, 51, 30, 20], [120, 122, 64, 48]])
    assert np.allclose(scene.cameras.distortion[2], [0.1, 0, 0, 0.4, 0, 0]) and not scene.cameras.distortion[0].any()
    assert any("applied_transform is ignored" in note for note in scene.notes)
    assert any("depth_file_path is ignored" in note for note in scene.notes)
    assert np.array_equal(scene.masks.image(3, (64, 48)), mask) and scene.masks.image(0, (64, 48)).all()
    assert any("masks for 1 of 9 photos" in note for note in scene.notes)


def test_fisheye_of_instant_ngp(tmp_path):
    save_transforms(tmp_path, ring_transforms(tmp_path) | {"is_fisheye": True, "k1": 0.1})
    assert (load_scene(nerf(tmp_path)).cameras.lens == FISHEYE).all()


def test_nerf_synthetic(tmp_path):
    """Extensions left out, one angle of view for all, the frame of the file kept, the given splits."""
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        content = ring_transforms(tmp_path, f"transforms_{split}.json", count, f"./{split}", {"camera_angle_x": 0.9}, radius=4, mode="RGBA")
        for frame in content["frames"]:
            frame["file_path"] = frame["file_path"].removesuffix(".png")
        save_transforms(tmp_path, content, f"transforms_{split}.json")
    scene = load_scene(nerf(tmp_path, offset=(0, 0, 1)))
    focal = 32 / math.tan(0.45)
    assert np.allclose(scene.cameras.intrinsics, [focal, focal, 32, 24]) and scene.photos.pixels.shape[1] == 4
    assert [part.tolist() for part in (scene.train, scene.val, scene.test)] == [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]
    assert np.allclose(scene.cameras.poses[0, :, 3], np.array([1, 0, 0.3]) / np.hypot(1, 0.3) * 3.2 + (0, 0, 1), atol=1e-5)
    assert np.allclose(scene.cameras.poses[:, :, :3], read_transforms(tmp_path, nerf(tmp_path)).poses[:, :, :3], atol=1e-6)
    assert scene.bound == 1 and scene.scale == 0.8
    for split, trained in (("trainval", 7), ("all", 10)):
        assert len(load_scene(nerf(tmp_path, train_split=split)).train) == trained
    half = load_scene(nerf(tmp_path, downscale=2))
    assert np.allclose(half.cameras.intrinsics, [focal / 2, focal / 2, 16, 12]) and (half.cameras.sizes == (32, 24)).all()


def test_split_files_that_are_not_all_there(tmp_path):
    ring_transforms(tmp_path, "transforms_train.json", 9, "train")
    scene = load_scene(nerf(tmp_path))
    assert scene.val.tolist() == [0, 8] and len(scene.train) == 7
    ring_transforms(tmp_path, "transforms_test.json", 2, "test")
    scene = load_scene(nerf(tmp_path))
    assert scene.val.tolist() == scene.test.tolist() == [9, 10] and len(scene.train) == 9


def test_held_out_views_may_be_cameras_alone(tmp_path):
    """As BlenderNeRF exports its test views."""
    for split, count in (("train", 9), ("val", 2), ("test", 3)):
        ring_transforms(tmp_path, f"transforms_{split}.json", count, split)
    shutil.rmtree(tmp_path / "test")
    scene = load_scene(nerf(tmp_path))
    assert [part.tolist() for part in (scene.train, scene.val, scene.test)] == [list(range(9)), [9, 10], [9, 10]]
    assert any("transforms_test.json: none of its 3 photos is there" in note for note in scene.notes)
    shutil.rmtree(tmp_path / "val")
    assert load_scene(nerf(tmp_path)).val.tolist() == [0, 8]
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(UserError, match="transforms_train.json: none of the 9 photos"):
        load_scene(nerf(tmp_path))


@pytest.mark.parametrize("name, head, shift, radius", [
    ("a lens", {"k1": 0.01}, 0, 3), ("an instant-ngp cube", {"k1": 0.0, "aabb_scale": 4}, 0, 3), ("points", {"ply_file_path": "points.ply"}, 0, 3),
    ("cameras elsewhere", {"camera_model": "PINHOLE"}, 10, 3), ("cameras inside the cube", {"camera_model": "PINHOLE"}, 0, 1)])
def test_split_files_that_are_no_object_at_the_origin(tmp_path, name, head, shift, radius):
    """Each mark alone tells the split files of a capture from those of NeRF-synthetic."""
    (tmp_path / "points.ply").write_text("ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\nend_header\n1 1 1\n-1 -1 -1\n")
    for split in ("train", "test"):
        content = ring_transforms(tmp_path, f"transforms_{split}.json", folder=split, radius=radius) | head
        for frame in content["frames"]:
            for row in frame["transform_matrix"][:3]:
                row[3] += shift
        save_transforms(tmp_path, content, f"transforms_{split}.json")
    scene = load_scene(nerf(tmp_path))
    assert np.allclose(np.linalg.norm(scene.cameras.poses[:, :, 3], axis=1), 1, atol=1e-5) and scene.scale == pytest.approx(1 / radius)
    assert scene.bound >= 2 and any("(split files)" in note for note in scene.notes) and len(scene.train) == len(scene.test) == 9
    assert any("aabb_scale 4 states a cube" in note for note in scene.notes) == ("aabb_scale" in head) and (scene.points is not None) == (name == "points")


def test_an_object_before_nothing_may_state_a_cube(tmp_path):
    """BlenderNeRF writes aabb_scale for objects too; what tells them is that the photos see through."""
    ring_transforms(tmp_path, "transforms_train.json", folder="train", head={"camera_angle_x": 0.7, "aabb_scale": 4}, radius=4, mode="RGBA")
    scene = load_scene(nerf(tmp_path))
    assert (scene.scale, scene.bound) == (0.8, 1) and any("aabb_scale is left aside" in note for note in scene.notes)


@pytest.mark.parametrize("turned, synthetic", [(False, True), (True, False)])
def test_an_object_seen_from_one_side_is_one_and_what_is_around_the_cameras_is_none(tmp_path, turned, synthetic):
    content = ring_transforms(tmp_path, "transforms_train.json", folder="train")
    for i, frame in enumerate(content["frames"]):
        matrix = np.eye(4)
        matrix[:3, 3] = [(i % 3 - 1) * 0.2, (i // 3 - 1) * 0.2, 3]  # parallel axes, which nowhere meet
        if turned:
            matrix[:3, :3] = np.diag([-1, 1, -1])
        frame["transform_matrix"] = matrix.tolist()
    save_transforms(tmp_path, content, "transforms_train.json")
    assert any("(NeRF-synthetic)" in note for note in load_scene(nerf(tmp_path)).notes) == synthetic


def test_reduced_folder(tmp_path):
    content = ring_transforms(tmp_path)
    ring_transforms(tmp_path / "other", folder="images")
    (tmp_path / "other" / "images").rename(tmp_path / "images_2")
    del content["w"], content["h"]
    save_transforms(tmp_path, content)
    scene = load_scene(nerf(tmp_path, downscale=2))
    assert (scene.cameras.sizes == (64, 48)).all() and np.allclose(scene.cameras.intrinsics[0], [60, 61, 32, 24])


@pytest.mark.parametrize("stated", ["{root}/images/{name}.png", "images/{name}", "../elsewhere/{name}.png", "{root}/../elsewhere/{name}.png"])
def test_reduced_photos_of_paths_of_all_kinds(tmp_path, stated):
    """images_2 serves what is in images; a photo that lies elsewhere is reduced here."""
    root = tmp_path / "scene"
    content = ring_transforms(root)
    for i, frame in enumerate(content["frames"]):
        frame["file_path"] = stated.format(root=root, name=f"{i:03d}")
        write_photo(root / "images_2" / f"{i:03d}.png", size=(32, 24))
    if "elsewhere" in stated:
        (root / "images").rename(tmp_path / "elsewhere")
    save_transforms(root, content)
    capture, scene = read_transforms(root, nerf(root, downscale=2)), load_scene(nerf(root, downscale=2))
    assert capture.at_full_size.all() == ("elsewhere" in stated) and (scene.cameras.sizes == (32, 24)).all()


def test_missing_photos(tmp_path):
    ring_transforms(tmp_path)
    (tmp_path / "images" / "004.png").unlink()
    scene = load_scene(nerf(tmp_path))
    assert len(scene.cameras) == 8 and any("1 of 9 frames have no photo" in note for note in scene.notes)
    for photo in (tmp_path / "images").iterdir():
        photo.unlink()
    with pytest.raises(UserError, match="none of the 9 photos"):
        load_scene(nerf(tmp_path))


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
def test_names_without_their_ending(tmp_path, ending):
    content = ring_transforms(tmp_path)
    for frame in content["frames"]:
        file = tmp_path / frame["file_path"]
        frame["file_path"] = frame["file_path"].removesuffix(".png")
        file.rename(file.with_suffix(ending))
    save_transforms(tmp_path, content)
    assert len(load_scene(nerf(tmp_path)).names) == 9


def test_other_ways_to_state_a_lens(tmp_path):
    """instant-ngp's angle in degrees, null for what is not known, and the mark that Windows' editors put before UTF-8."""
    content = ring_transforms(tmp_path, head={"x_fov": 50, "y_fov": 40, "camera_model": None})
    content["frames"][3] |= {"camera_angle_x": 0.9, "y_fov": None, "fl_y": None, "camera_model": "OPENCV_FISHEYE"}
    (tmp_path / "transforms.json").write_text(json.dumps(content), encoding="utf-8-sig")
    cameras = load_scene(nerf(tmp_path)).cameras
    focal = [32 / math.tan(math.radians(25)), 24 / math.tan(math.radians(20))]
    assert np.allclose(cameras.intrinsics[0], [*focal, 32, 24]) and np.allclose(cameras.intrinsics[3, :2], [32 / math.tan(0.45), focal[1]])
    assert cameras.lens.tolist() == [0] * 3 + [FISHEYE] + [0] * 5


def test_no_file(tmp_path):
    ring_scene(tmp_path)
    with pytest.raises(UserError, match="--data_format colmap"):
        load_scene(nerf(tmp_path))


@pytest.mark.parametrize("content, message", [
    ("", "is not JSON"), ("{", "is not JSON"), ("[" * 100_000, "nested too deeply|is not JSON"), ("[]", "no list 'frames'"),
    ('{"frames": []}', "no list 'frames'"), ('{"frames": {}}', "no list 'frames'"), ('{"frames": [1]}', "frame 0 has no file_path"),
    ('{"frames": [{"file_path": 3}]}', "frame 0 has no file_path"), ('{"frames": [{"file_path": "a"}]}', "transform_matrix is not"),
])
def test_not_a_transforms_file(tmp_path, content, message):
    (tmp_path / "transforms.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_scene(nerf(tmp_path))


def changed(content, frame=None, **changes):
    content = copy.deepcopy(content)
    (content if frame is None else content["frames"][frame]).update(changes)
    return content


def test_values_that_make_no_sense(tmp_path):
    content = ring_transforms(tmp_path)
    nan, mirrored, flat = (np.array(content["frames"][3]["transform_matrix"]) for _ in range(3))
    nan[0, 3], mirrored[:, 0], flat[:, 0] = np.nan, -mirrored[:, 0], flat[:, 1]
    for bad, message in [
        (changed(content, fl_x="wide"), "fl_x is 'wide'"), (changed(content, fl_x=float("nan")), "fl_x is nan"),
        (changed(content, fl_x=-5), "intrinsics"), (changed(content, fl_x=0, fl_y=None), "intrinsics"), (changed(content, 2, k1=float("inf")), "frame 2.*k1 is inf"),
        (changed(content, cx=True), "cx is True"), (changed(content, camera_model="EQUIRECTANGULAR"), "'EQUIRECTANGULAR' is not supported"),
        (changed(content, 3, transform_matrix=nan.tolist()), "003.png: the camera pose holds NaN"),
        (changed(content, 3, transform_matrix=mirrored.tolist()), "003.png: the camera pose mirrors"),
        (changed(content, 3, transform_matrix=flat.tolist()), "003.png: the camera pose is singular"),
        (changed(content, 3, transform_matrix=[[1, 2], [3]]), "frame 3.*transform_matrix"),
        (changed(content, 3, transform_matrix=None), "frame 3.*transform_matrix"),
        ({key: value for key, value in content.items() if not key.startswith("fl")}, "no focal length"),
    ]:
        save_transforms(tmp_path, bad)
        with pytest.raises(UserError, match=message):
            load_scene(nerf(tmp_path))


def test_mutated_file(scene_data, tmp_path):
    """A real file with values replaced at random is read or refused in a sentence."""
    source = random.Random(0)
    content = json.loads((scene_data("fox") / "transforms.json").read_text())
    content["frames"] = content["frames"][:6]
    ring_transforms(tmp_path)
    (tmp_path / "images" / "000.png").rename(tmp_path / "images" / "0001.jpg")
    odd = [None, "", [], {}, True, -1, 0, 1e300, 10**400, float("nan"), float("inf"), "a\0b", "x" * 5000, [[1] * 4] * 4, [["1"] * 4] * 3]
    for _ in range(300):
        mutated = copy.deepcopy(content)
        for _ in range(source.randrange(1, 4)):
            place = source.choice([mutated, *mutated["frames"]]) if isinstance(mutated.get("frames"), list) else mutated
            if isinstance(place, dict) and place:
                place[source.choice([*place, "camera_model", "w", "k1"])] = copy.deepcopy(source.choice(odd))
        save_transforms(tmp_path, mutated)
        try:
            read_transforms(tmp_path, nerf(tmp_path))
        except UserError as error:
            assert "transforms.json" in str(error) and len(str(error)) < 8000
