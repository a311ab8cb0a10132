"""scripts/colmap2nerf.py: what goes in, what comes out, and what is said about bad input; with a real COLMAP where there is one."""

import importlib.util
import json
import os
import shlex
import shutil
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from captures import (
    aligned_errors,
    arc_cameras,
    draw_corner,
    photograph_corner,
    texture,
    write_video,
)
from scene_files import options as scene_options
from scene_files import ring_model, ring_scene, write_binary, write_photo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import colmap2nerf
from nerf.options import parse_options
from nerf.scene import load_scene
from nerf.scene.colmap import read_colmap
from nerf.scene.transforms import read_transforms
from sfm.frames import extract_frames
from sfm.photos import cameras_of, find_photos
from sfm.report import advice

FORMS = [
    pytest.param("pycolmap", marks=pytest.mark.skipif(importlib.util.find_spec("pycolmap") is None, reason="pycolmap is not installed")),
    pytest.param("binary", marks=pytest.mark.skipif(shutil.which("colmap") is None, reason="no program colmap on the PATH")),
]


def refused(capsys, *arguments):
    """The one sentence with which the script refuses `arguments`."""
    capsys.readouterr()
    assert colmap2nerf.main([str(argument) for argument in arguments]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("colmap2nerf.py: ") and lines[0].endswith("."), lines
    return lines[0]


def contents(folder):
    """Every file below `folder` with its bytes."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture
def photos(tmp_path):
    """A folder of four small photos."""
    for i in range(4):
        write_photo(tmp_path / "capture" / "images" / f"{i}.png", seed=i)
    return tmp_path / "capture" / "images"


@pytest.fixture
def no_colmap(monkeypatch):
    """As on a machine without COLMAP."""
    monkeypatch.setenv("PATH", "/nowhere")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pycolmap" else found(name, *rest))


@pytest.fixture
def unasked_colmap(monkeypatch):
    """COLMAP is there, also on a machine without it, but must not be asked for anything: what goes in is looked at first."""
    monkeypatch.setattr(colmap2nerf, "choose_colmap", lambda wanted: SimpleNamespace())


# Frames


def test_the_sharpest_frame_of_each_interval_is_taken(tmp_path):
    sharp = texture(0, 240)
    shifted = [np.roll(sharp, 3 * i, axis=1) for i in range(20)]
    frames = [frame if i % 5 == 3 else cv2.GaussianBlur(frame, (0, 0), 4) for i, frame in enumerate(shifted)]
    video = write_video(tmp_path / "hand held.mp4", frames, fps=20)
    (tmp_path / "out").mkdir()
    taken = extract_frames(video, tmp_path / "out", fps=4)
    files = sorted((tmp_path / "out").iterdir())
    assert taken.kept == 4 and [file.name for file in files] == [f"frame_{i:05d}.jpg" for i in range(1, 5)]
    for i, file in enumerate(files):
        difference = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE).astype(float) - shifted[5 * i + 3]
        assert np.abs(difference).mean() < 8, f"{file.name} is not frame {5 * i + 3}"


def test_a_slice_of_the_video(tmp_path):
    video = write_video(tmp_path / "a.mp4", [np.full((64, 64), 10 * i, np.uint8) for i in range(20)], fps=10)
    extract_frames(video, tmp_path, fps=10, time_slice=(1.0, 1.5))
    levels = [cv2.imread(str(file))[32, 32, 0] for file in sorted(tmp_path.glob("frame_*"))]
    assert len(levels) == 5 and np.abs(np.array(levels) - np.arange(100, 150, 10)).max() < 4


def test_frames_alone_can_be_taken_first(tmp_path, capsys):
    (tmp_path / "clip").mkdir()
    video = write_video(tmp_path / "clip" / "a.mp4", [texture(i, 64) for i in range(30)])
    assert colmap2nerf.main(["--video", str(video)]) == 0
    assert len(list((tmp_path / "clip" / "images").iterdir())) == 3 and "3 frames" in capsys.readouterr().out
    assert "--overwrite" in refused(capsys, "--video", video)
    assert colmap2nerf.main(["--video", str(video), "--video_fps", "5", "--overwrite"]) == 0
    assert len(list((tmp_path / "clip" / "images").iterdir())) == 5
    (tmp_path / "clip" / "images" / "holiday.jpg").write_bytes(b"mine")
    assert "holiday.jpg" in refused(capsys, "--video", video, "--overwrite")
    assert (tmp_path / "clip" / "images" / "holiday.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize("case", ["missing", "corrupt", "empty", "text", "one frame", "beyond its end"])
def test_videos_that_give_no_scene(case, tmp_path, capsys, unasked_colmap):
    video, flags = tmp_path / "v.mp4", []
    if case == "one frame":
        write_video(video, [texture(0, 64)])
    elif case == "beyond its end":
        write_video(video, [texture(0, 64)] * 5)
        flags = ["--time_slice", "100,200"]
    elif case == "corrupt":
        good = write_video(tmp_path / "good.mp4", [texture(i, 64) for i in range(5)]).read_bytes()
        video.write_bytes(good[:40] + bytes(len(good) - 40))
        (tmp_path / "good.mp4").unlink()
    elif case != "missing":
        video.write_bytes(b"" if case == "empty" else b"just some words")
    before = contents(tmp_path)
    assert str(video) in refused(capsys, "--video", video, "--run_colmap", "--colmap", "auto", *flags) or case == "missing"
    assert contents(tmp_path) == before


# Photos


def test_photos_that_give_no_scene(photos, tmp_path, capsys, unasked_colmap):
    (tmp_path / "empty").mkdir()
    assert "no photos" in refused(capsys, "--images", tmp_path / "empty", "--run_colmap")
    assert "no such folder" in refused(capsys, "--images", tmp_path / "absent", "--run_colmap")
    assert "2 photos after --skip_early 2" in refused(capsys, "--images", photos, "--run_colmap", "--skip_early", "2")
    good = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(good[:len(good) // 2])
    assert str(photos / "3.png") in refused(capsys, "--images", photos, "--run_colmap")
    (photos / "3.png").rename(photos / "3.HEIC")
    assert "convert" in refused(capsys, "--images", photos, "--run_colmap")
    (photos / "3.HEIC").unlink()
    write_photo(photos / "3.webp")
    assert "3.webp: COLMAP cannot read this kind of file (1 are here); convert them" in refused(capsys, "--images", photos, "--run_colmap")
    (photos / "3.webp").unlink()
    assert not [name for name in contents(photos.parent) if not name.startswith("images/")]


def test_without_colmap(photos, no_colmap, capsys):
    for form in ("auto", "binary", "pycolmap"):
        assert "pip install pycolmap" in refused(capsys, "--images", photos, "--run_colmap", "--colmap", form)
    assert list(photos.parent.iterdir()) == [photos]


def test_a_folder_that_cannot_be_written(photos, tmp_path, capsys, unasked_colmap):
    blocked = tmp_path / "blocked"
    if os.geteuid():
        blocked.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    else:
        blocked.write_text("a file, since nothing stops root")
    assert "cannot be written" in refused(capsys, "--images", photos, "--run_colmap", "--out", blocked / "scene")


def test_results_are_not_overwritten(photos, capsys):
    (photos.parent / "transforms.json").write_text("mine")
    assert "--overwrite" in refused(capsys, "--images", photos, "--run_colmap")
    (photos.parent / "elsewhere" / "images").mkdir(parents=True)
    assert "--out" in refused(capsys, "--images", photos, "--run_colmap", "--out", photos.parent / "elsewhere")
    (photos.parent / "linked").mkdir()
    (photos.parent / "linked" / "images").symlink_to(photos.parent / "elsewhere", target_is_directory=True)
    assert "--out" in refused(capsys, "--images", photos, "--run_colmap", "--out", photos.parent / "linked")
    assert (photos.parent / "transforms.json").read_text() == "mine"


def test_cameras_are_told_apart_by_size_and_exif(tmp_path):
    write_photo(tmp_path / "a.jpg", size=(64, 48))
    write_photo(tmp_path / "b" / "a.jpg", size=(64, 48))
    write_photo(tmp_path / "c.jpg", size=(48, 64))
    zoomed = Image.Exif()
    zoomed.get_ifd(0x8769)[0x920A] = 52.0
    zoomed[0x112] = 6
    Image.open(tmp_path / "a.jpg").save(tmp_path / "d.jpg", exif=zoomed)
    found = find_photos(tmp_path)
    assert cameras_of(found) == [["a.jpg", "b/a.jpg"], ["c.jpg"], ["d.jpg"]]
    assert [photo.turned for photo in found] == [False, False, False, True]


def test_photos_in_linked_folders(photos, tmp_path):
    (photos.parent / "more").symlink_to(photos)
    assert [photo.name for photo in find_photos(photos.parent)] == [f"{folder}/{i}.png" for folder in ("images", "more") for i in range(4)]


def test_masks_must_fit(photos, capsys, unasked_colmap):
    masks = photos.parent / "masks"
    write_photo(masks / "other.png", mode="L")
    assert "no mask" in refused(capsys, "--images", photos, "--run_colmap")
    write_photo(masks / "1.png", mode="L", size=(65, 48))
    assert "65x48" in refused(capsys, "--images", photos, "--run_colmap")
    write_photo(masks / "1.png", mode="L")
    write_photo(photos / "1.jpg")
    assert "both 1.jpg and 1.png" in refused(capsys, "--images", photos, "--run_colmap")
    assert "frames first" in refused(capsys, "--video", photos / "0.png", "--run_colmap", "--masks", masks, "--out", photos.parent / "new")


# What is written


def test_a_model_that_is_there_becomes_transforms(tmp_path, capsys):
    scene = ring_scene(tmp_path / "my scène", camera=("OPENCV", 64, 48, [60, 61, 32, 24, 0.05, -0.01, 0.001, -0.002]))
    for i in (2, 5):
        cv2.imwrite(str(tmp_path / "mask.png"), np.full((48, 64), 255, np.uint8))
        (scene / "masks").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "mask.png", scene / "masks" / f"00{i}.png")
    assert colmap2nerf.main(["--images", str(scene / "images"), "--hold", "4", "--dynamic"]) == 0
    assert "9 of 9 photos" in capsys.readouterr().out
    content = json.loads((scene / "transforms.json").read_text())
    assert content["k2"] == -0.01 and content["w"] == 64 and content["camera_model"] == "OPENCV"
    assert content["test_filenames"] == [f"images/{i:03d}.png" for i in (0, 4, 8)] and len(content["train_filenames"]) == 6
    assert [frame.get("mask_path") for frame in content["frames"]][:3] == [None, None, "masks/002.png"]
    assert content["frames"][3]["time"] == pytest.approx(3 / 9)
    one, other = read_colmap(scene, scene_options(scene)), read_transforms(scene, scene_options(scene))
    turns, shifts = aligned_errors(other.poses, one.poses)
    assert turns.max() < 1e-4 and shifts.max() < 1e-6
    np.testing.assert_allclose(other.distortion, one.distortion)
    colours = np.frombuffer((scene / "sparse_pc.ply").read_bytes()[-200 * 15:], np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)]))["rgb"]
    assert other.points.shape == one.points.shape and (colours == 9).all()
    assert np.linalg.norm(other.poses[:, :, 3], axis=1).mean() == pytest.approx(4)
    assert json.loads((scene / "report.json").read_text())["registered"] == 9 and (scene / "poses.png").stat().st_size > 10_000


@pytest.mark.parametrize(("spread", "cube"), [(1, 4), (20, 16), (1e5, 128)])
def test_the_cube_for_instant_ngp_holds_cameras_and_points(tmp_path, spread, cube):
    """Cameras are at 4 of the file's units; instant-ngp's cube of side 1 is 1 / 0.33 of them wide."""
    scene = ring_scene(tmp_path)
    cameras, images, points = ring_model()
    write_binary(scene / "sparse" / "0", cameras, images, {key: spread * xyz for key, xyz in points.items()})
    assert colmap2nerf.main(["--images", str(scene / "images")]) == 0
    content, capture = json.loads((scene / "transforms.json").read_text()), read_transforms(scene, scene_options(scene))
    assert content["aabb_scale"] == cube
    inside = (np.abs(capture.points).max(axis=1) <= capture.region[1, 0]).mean()
    assert np.abs(capture.poses[:, :, 3]).max() <= capture.region[1, 0] and (inside >= 0.95 or cube == 128)


@pytest.mark.parametrize("hold", [0, 4, 8])
def test_the_command_that_is_printed_holds_out_what_was_asked(tmp_path, capsys, hold):
    scene = ring_scene(tmp_path / "a b", count=17)
    assert colmap2nerf.main(["--images", str(scene / "images"), "--hold", str(hold)]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].partition(": python main.py ")[2])
    options = parse_options(command)
    assert options.path == str(scene) and load_scene(options).val.tolist() == list(range(0, 17, hold or 8))


def test_both_doors_lead_to_the_same_scene(scene_data, tmp_path):
    """The model and the transforms.json made of it have the same world, bound and box, and nearly the same start of the views.

    Outliers are cut off along the axes of each file, which differ: hence the tolerance.
    """
    scene = tmp_path / "fox"
    for name in ("images", "sparse"):
        shutil.copytree(scene_data("fox") / name, scene / name)
    assert colmap2nerf.main(["--images", str(scene / "images")]) == 0
    one, other = load_scene(scene_options(scene, downscale=8)), load_scene(scene_options(scene, downscale=8, data_format="nerf"))
    np.testing.assert_allclose(other.cameras.poses, one.cameras.poses, atol=2e-3)
    np.testing.assert_allclose(np.sort(other.points, axis=0), np.sort(one.points, axis=0), atol=2e-3)
    np.testing.assert_allclose(other.aabb, one.aabb, atol=2e-3)
    assert other.bound == one.bound and [name.removeprefix("images/") for name in other.names] == one.names
    assert np.array_equal(other.val, one.val) and np.array_equal(other.train, one.train)
    assert other.cameras.near[0] == pytest.approx(one.cameras.near[0], rel=0.3)


def test_the_largest_of_several_models_becomes_transforms(tmp_path):
    scene = ring_scene(tmp_path)
    (scene / "sparse" / "0").rename(scene / "sparse" / "1")
    cameras, images, points = ring_model()
    write_binary(scene / "sparse" / "0", cameras, images[:3], points)
    assert colmap2nerf.main(["--images", str(scene / "images")]) == 0
    assert len(json.loads((scene / "transforms.json").read_text())["frames"]) == 9
    assert sorted(entry.name for entry in (scene / "sparse").iterdir()) == ["0", "1"]


def test_all_of_a_lens_gets_into_transforms(tmp_path):
    """FULL_OPENCV's k3 too, which OPENCV has not."""
    scene = ring_scene(tmp_path, camera=("FULL_OPENCV", 64, 48, [60, 61, 32, 24, 0.05, -0.01, 0.001, -0.002, 0.003, 0, 0, 0]))
    assert colmap2nerf.main(["--images", str(scene / "images")]) == 0
    one, other = read_colmap(scene, scene_options(scene)), read_transforms(scene, scene_options(scene))
    assert one.distortion[0].tolist() == other.distortion[0].tolist() == [0.05, -0.01, 0.003, 0, 0.001, -0.002]


def test_a_model_without_points(tmp_path):
    scene = ring_scene(tmp_path)
    (scene / "sparse" / "0" / "points3D.bin").unlink()
    assert colmap2nerf.main(["--images", str(scene / "images")]) == 0
    assert not (scene / "sparse_pc.ply").exists() and "ply_file_path" not in json.loads((scene / "transforms.json").read_text())


def test_photos_of_several_sizes_keep_their_lenses(tmp_path):
    scene = tmp_path / "scene"
    cameras, images, points = ring_model()
    images = [(name, 1 + i % 2, *rest) for i, (name, _, *rest) in enumerate(images)]
    write_binary(scene / "sparse" / "0", cameras | {2: ("SIMPLE_RADIAL", 48, 64, [70, 24, 32, 0.1])}, images, points)
    for i, image in enumerate(images):
        write_photo(scene / "images" / image[0], size=(48, 64) if i % 2 else (64, 48))
    assert colmap2nerf.main(["--images", str(scene / "images"), "--hold", "0"]) == 0
    content = json.loads((scene / "transforms.json").read_text())
    assert "fl_x" not in content and "test_filenames" not in content
    assert [frame["fl_x"] for frame in content["frames"][:2]] == [60, 70] and content["frames"][1]["k1"] == 0.1
    assert [camera["photos"] for camera in json.loads((scene / "report.json").read_text())["cameras"]] == [5, 4]


def test_names_in_the_scene_are_plain_and_free(photos, capsys):
    for flag in ("--colmap_db", "--colmap_text"):
        for name in (".", "..", "", "a/b", "/elsewhere", "images", "sparse", "report.json"):
            with pytest.raises(SystemExit):
                colmap2nerf.parse(["--images", str(photos), flag, name])
    assert "no such file" in refused(capsys, "--images", photos, "--run_colmap", "--colmap_matcher", "vocab_tree")


def test_without_colmap_run_and_without_a_model(photos, capsys):
    assert "--run_colmap" in refused(capsys, "--images", photos)


def test_advice_names_what_to_change():
    camera = {"photos": 10, "width": 100, "height": 80, "view_degrees": 60.0, "fx": 90.0, "fy": 90.0}
    report = {"photos": 100, "registered": 100, "not_registered": [], "models": [100], "matchers": ["sequential"], "mean_reprojection_error": 0.7,
              "cameras": [camera]}
    assert advice(report) == []
    poor = report | {"registered": 40, "not_registered": [f"{i}.jpg" for i in range(60)], "models": [40, 30], "mean_reprojection_error": 2.0,
                     "cameras": [camera | {"fy": 40.0}]}
    said = " ".join(advice(poor, {"3.jpg": 20}))
    for words in ("--colmap_matcher exhaustive", "60 photos have no pose", "2 groups (40, 30 photos)", "3.jpg", "2.00 pixels", "90 x 40"):
        assert words in said, said


# With a real COLMAP


@pytest.mark.parametrize("form", FORMS)
def test_photos_to_a_scene_that_loads(form, tmp_path, capsys):
    folder = tmp_path / "für alle"
    names, truth = photograph_corner(folder, 7, "{:03d} ä.png")
    names = [f"{'east' if i < 4 else 'west'} side/{i % 4}.png" for i in range(7)]  # the same names in both
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{i:03d} ä.png").rename(folder / name)
        (tmp_path / "given" / name).parent.mkdir(parents=True, exist_ok=True)
    mask = np.full((300, 400), 255, np.uint8)
    mask[:, :60] = 0
    cv2.imwrite(str(tmp_path / "given" / "west side" / "2.png"), mask)
    before = contents(folder)
    flags = ["--run_colmap", "--colmap", form, "--masks", str(tmp_path / "given"), "--undistort", "--colmap_text", "text", "--colmap_matcher", "retrieval"]
    assert colmap2nerf.main(["--images", str(folder), *flags]) == 0, capsys.readouterr().err
    scene = tmp_path / "für alle_scene"
    made = {"colmap.db", "colmap.log", "images", "masks", "poses.png", "report.json", "report.txt", "sparse", "sparse_pc.ply", "text", "transforms.json", "undistorted"}
    assert {entry.name for entry in scene.iterdir()} == made and contents(folder) == before
    report = json.loads((scene / "report.json").read_text())
    assert report["registered"] == 7 and report["mean_reprojection_error"] < 0.5 and report["matchers"] == ["retrieval"] and len(report["cameras"]) == 1
    capture = read_colmap(scene, scene_options(scene))
    assert capture.names == names and capture.intrinsics[0, 0] == pytest.approx(360, rel=0.03)
    poses = np.concatenate([truth[:, :, :3].transpose(0, 2, 1) * [1, -1, -1], -np.einsum("nji,nj->ni", truth[:, :, :3], truth[:, :, 3])[:, :, None]], axis=2)
    turns, shifts = aligned_errors(capture.poses, poses)
    assert turns.max() < 0.5 and shifts.max() < 0.02
    flat = read_colmap(scene / "undistorted", scene_options(scene))
    assert not flat.distortion.any() and flat.names == names
    assert (scene / "undistorted" / "masks" / "west side" / "2.png.png").is_file() and (scene / "text" / "images.txt").is_file()
    loaded = load_scene(scene_options(scene))
    assert len(loaded.cameras) == 7 and (loaded.cameras.sizes == (400, 300)).all()
    if form == "pycolmap":
        assert "has none of this kind" in refused(capsys, "--images", folder, *flags, "--colmap_matcher", "transitive", "--out", tmp_path / "other")
    kept = contents(scene / "sparse")
    assert "--overwrite" in refused(capsys, "--images", folder, *flags) and contents(scene / "sparse") == kept


@pytest.mark.parametrize("form", FORMS)
def test_photos_without_overlap(form, tmp_path, capsys):
    for i in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"{i}.jpg"), texture(100 + i, 160))
    assert "overlap" in refused(capsys, "--images", tmp_path / "images", "--run_colmap", "--colmap", form)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["colmap.log", "images"]


@pytest.mark.parametrize("form", FORMS[:1])
def test_a_video_to_a_scene(form, tmp_path):
    video = write_video(tmp_path / "corner.mp4", [draw_corner(pose) for pose in arc_cameras(40, step=0.015)], fps=10)
    assert colmap2nerf.main(["--video", str(video), "--run_colmap", "--colmap", form, "--video_fps", "2", "--out", str(tmp_path / "scene")]) == 0
    report = json.loads((tmp_path / "scene" / "report.json").read_text())
    assert report["frames"]["kept"] == 8 and report["registered"] == 8 and report["matchers"][:2] == ["sequential", "retrieval"]
    assert len(list((tmp_path / "scene" / "images").iterdir())) == 8
