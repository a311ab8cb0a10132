"""--data_format auto and what it says to folders that are no scenes; photos as people have them; nerfstudio's dialect; a short fuzz."""

import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from conftest import ROOT, advance
from fuzz_readers import SCENES
from nerf.errors import UserError
from nerf.scene import load_scene
from nerf.scene.formats import read_capture
from nerf.scene.ply import parse_ply
from nerf.scene.transforms_file import LENSES
from scene_files import (
    options,
    ring_scene,
    ring_transforms,
    save_transforms,
    write_dtu,
    write_llff,
    write_photo,
)


def auto(root, **changes):
    return options(root, data_format="auto", **changes)


@pytest.mark.parametrize("name, note", [("fox", "--data_format colmap, as there is sparse/0; --data_format nerf would read transforms.json"),
                                        ("bust", "--data_format colmap, as there is sparse/0"), ("bonsai", "--data_format colmap, as there is sparse/0"),
                                        ("lego_200", "--data_format nerf, as there is transforms_train.json")])
def test_auto_on_real_scenes(scene_data, name, note):
    assert read_capture(scene_data(name), auto(scene_data(name))).notes[0] == note


def refused(root, **changes):
    with pytest.raises(UserError) as caught:
        load_scene(auto(root, **changes))
    return str(caught.value)


def test_folders_that_are_no_scene(tmp_path):
    scene = ring_scene(tmp_path / "my scenes" / "erste Szene")
    folder = scene.parent
    assert refused(folder) == f"{folder} is a folder of scenes (erste Szene); pass one of them, such as '{scene}'"
    for part in (scene / "images", scene / "sparse" / "0"):
        assert refused(part) == f"{part} is a part of the scene {scene}; pass {scene}"
    shutil.rmtree(scene / "sparse")
    command = f"python scripts/colmap2nerf.py --images '{scene / 'images'}' --run_colmap"
    assert refused(scene) == f"{scene}: 9 photos without cameras; find these by: {command}"
    assert f"--images '{scene / 'images'}' --run_colmap" in refused(scene / "images")
    shutil.rmtree(scene / "images")
    assert "the folder is empty" in refused(scene)
    (scene / "notes.md").write_text("")
    assert "no scene is here (looked for cameras and images" in refused(scene) and "the folder holds notes.md" in refused(scene)
    (scene / "IMG 1.MOV").write_text("")
    assert f"--video '{scene / 'IMG 1.MOV'}' --run_colmap" in refused(scene) and f"--video '{scene / 'IMG 1.MOV'}'" in refused(scene / "IMG 1.MOV")


def test_two_photos(tmp_path):
    ring_scene(tmp_path, count=2)
    assert "of 2 usable photo(s), 1 are left to train on" in refused(tmp_path)
    assert len(load_scene(auto(tmp_path, train_split="all")).train) == 2


def test_format_that_is_not_there(tmp_path):
    ring_transforms(tmp_path)
    for name in ("colmap", "llff", "dtu"):
        with pytest.raises(UserError, match=f"nothing here is what --data_format {name} reads .* pass --data_format nerf, or leave it out"):
            load_scene(options(tmp_path, data_format=name))


def test_name_registered_twice(tmp_path):
    ring_scene(tmp_path)
    file = tmp_path / "sparse" / "0" / "images.bin"
    file.write_bytes(file.read_bytes().replace(b"004.png", b"003.png"))
    assert "the model registers 003.png twice" in refused(tmp_path)


def test_same_names_in_sub_folders_and_odd_paths(tmp_path):
    """Spaces, umlauts and the same name in two folders are nothing special."""
    root = tmp_path / "Äpfel & 木 (1)"
    content = ring_transforms(root)
    for i, frame in enumerate(content["frames"]):
        name = f"images/Kamera {'links' if i % 2 else 'rechts'}/Größe {i // 2}.png"
        write_photo(root / name, seed=i)
        frame["file_path"] = name.replace("/", "\\")
    save_transforms(root, content)
    scene = load_scene(auto(root))
    assert len(set(scene.names)) == 9 and scene.names[0] == "images/Kamera links/Größe 0.png"


def test_name_in_another_encoding(tmp_path):
    """A photo named in Latin-1 loads, under a name that can be printed."""
    ring_scene(tmp_path)
    file = tmp_path / "sparse" / "0" / "images.bin"
    file.write_bytes(file.read_bytes().replace(b"004.png", b"00\xe4.png"))
    (tmp_path / "images" / "004.png").rename(tmp_path / "images" / os.fsdecode(b"00\xe4.png"))
    write_photo(tmp_path / "images" / os.fsdecode(b"00\xe4.png"), size=(48, 64))
    scene = load_scene(auto(tmp_path))
    assert scene.names[-1] == "00\\udce4.png" and len(scene.names) == 9
    assert any("00\\udce4.png: 48x64" in note for note in scene.notes) and "".join(scene.notes).encode()


def with_exif(file, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, exif=exif)


def test_exif_orientation(tmp_path):
    """Only a photo that does not fit its camera as it is stored is turned, and both are told."""
    ring_scene(tmp_path)
    pixels = [write_photo(tmp_path / "images" / f"{i:03d}.png", seed=i) for i in range(3)]
    with_exif(tmp_path / "images" / "000.png", np.rot90(pixels[0]), 6)
    with_exif(tmp_path / "images" / "001.png", pixels[1], 6)
    with_exif(tmp_path / "images" / "002.png", pixels[2], 3)
    scene = load_scene(auto(tmp_path))
    assert (scene.cameras.sizes == (64, 48)).all()
    for i in range(3):
        assert np.array_equal(scene.photos.image(i, (64, 48)), pixels[i])
    assert any("1 photos were turned as their EXIF data say" in note for note in scene.notes)
    assert any("warning: 2 photos are to be turned by their EXIF data, but were left" in note for note in scene.notes)
    assert not any("another shape" in note for note in scene.notes)
    half = load_scene(auto(tmp_path, downscale=2))
    expected = pixels[0].reshape(24, 2, 32, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(half.photos.image(0, (32, 24)) - expected).max() <= 0.51


def test_photos_of_other_kinds(tmp_path):
    ring_scene(tmp_path)
    file = tmp_path / "images" / "003.png"
    file.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"x" * 100)
    assert "003.png: HEIC photos are not read; convert all to JPEG" in refused(tmp_path)
    Image.fromarray(np.zeros((48, 64), dtype=np.float32)).save(file, format="TIFF")
    assert "003.png: the photo does not open (its pixels are floating-point numbers" in refused(tmp_path)


def test_deep_colour(tmp_path):
    """16-bit colour and grey with alpha are brought to 8 bits, not clipped."""
    ring_scene(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 4), dtype=np.uint8)
    for i, channels in ((0, 3), (1, 4)):
        ok, encoded = cv2.imencode(".png", pixels[..., [2, 1, 0, 3][:channels]].astype(np.uint16) * 257)
        assert ok
        (tmp_path / "images" / f"{i:03d}.png").write_bytes(encoded.tobytes())
    Image.fromarray(pixels[..., :2], "LA").save(tmp_path / "images" / "002.png")
    photos = load_scene(auto(tmp_path)).photos
    assert np.array_equal(photos.image(0, (64, 48))[..., :3], pixels[..., :3]) and np.array_equal(photos.image(1, (64, 48)), pixels)
    assert np.array_equal(photos.image(2, (64, 48)), pixels[..., [0, 0, 0, 1]])


def test_nerfstudio_splits(tmp_path):
    content = ring_transforms(tmp_path)
    names = [frame["file_path"] for frame in content["frames"]]
    content |= {"train_filenames": names[2:7], "val_filenames": [names[1].replace("images", "./images")], "test_filenames": []}
    save_transforms(tmp_path, content)
    scene = load_scene(auto(tmp_path))
    assert scene.names == names[1:7] and [part.tolist() for part in (scene.train, scene.val, scene.test)] == [[1, 2, 3, 4, 5], [0], [0]]
    assert any("3 frames are in none of its splits" in note for note in scene.notes)
    save_transforms(tmp_path, content | {"train_filenames": [], "test_filenames": names[4:5]})
    scene = load_scene(auto(tmp_path))
    assert [part.tolist() for part in (scene.train, scene.val, scene.test)] == [[0, 2, 3, 5, 6, 7, 8], [1], [4]]
    save_transforms(tmp_path, content | {"val_filenames": []})
    assert load_scene(auto(tmp_path)).val.tolist() == [0]  # nothing given, so every eighth
    for wrong, message in ((["images/nowhere.png"], "images/nowhere.png is in one of train_filenames"), ("images/001.png", "no lists of names"), ([1], "no lists of names")):
        save_transforms(tmp_path, content | {"train_filenames": wrong})
        assert message in refused(tmp_path)


@pytest.mark.parametrize("model", ["EQUIRECTANGULAR", "OMNIDIRECTIONALSTEREO_L", "VR180_R", "ORTHOPHOTO", "FISHEYE624", "FULL_OPENCV", "THIN_PRISM_FISHEYE"])
def test_lenses_that_rays_do_not_follow(tmp_path, model):
    content = ring_transforms(tmp_path)
    save_transforms(tmp_path, content | {"camera_model": model})
    assert f"camera_model '{model}' is not supported (supported: SIMPLE_PINHOLE" in refused(tmp_path)
    save_transforms(tmp_path, content | {"equirectangular": True})
    assert "the lens equirectangular is not supported" in refused(tmp_path)


@pytest.mark.parametrize("model", [*LENSES, "pinhole"])
def test_lenses_that_they_follow(tmp_path, model):
    save_transforms(tmp_path, ring_transforms(tmp_path) | {"camera_model": model, "k1": 0.01})
    assert load_scene(auto(tmp_path)).cameras.lens[0] == ("FISHEYE" in model)


def test_points_of_a_ply_file(tmp_path):
    content = ring_transforms(tmp_path)
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) * 0.3
    points[7] = np.nan
    ascii_header = "ply\nformat ascii 1.0\nelement vertex 50\nproperty float x\nproperty uchar red\nproperty float y\nproperty float z\nend_header\n"
    (tmp_path / "a b.ply").write_text(ascii_header + "".join(f"{x!r} 9 {y!r} {z!r}\n" for x, y, z in points.tolist()))
    save_transforms(tmp_path, content | {"ply_file_path": "a b.ply"})
    scene = load_scene(auto(tmp_path))
    assert len(scene.points) == 49 and any("49 points from a b.ply" in note for note in scene.notes)
    assert np.allclose(np.linalg.norm(scene.points - scene.points.mean(axis=0), axis=1).std(),
                       scene.scale * np.linalg.norm(points[np.isfinite(points[:, 0])] - np.nanmean(points, axis=0), axis=1).std(), rtol=1e-3)
    row = np.dtype([("x", "<f8"), ("n", "<i2"), ("y", "<f8"), ("z", "<f8")])
    table = np.zeros(50, row)
    table["x"], table["y"], table["z"] = points.T
    header = b"ply\nformat binary_little_endian 1.0\ncomment z\nelement vertex 50\nproperty double x\nproperty short n\nproperty double y\nproperty double z\n"
    binary = header + b"element face 1\nproperty list uchar int vertex_indices\nend_header\n" + table.tobytes() + b"\3"
    assert np.array_equal(parse_ply(binary), points.astype(np.float64), equal_nan=True)
    for wrong, message in ((b"", "no PLY"), (binary[:-20], "more than its bytes"), (binary.replace(b"little", b"big"), "neither ascii"), (header.replace(b" z", b" q") + b"end_header\n", "no plain x")):
        with pytest.raises(ValueError, match=message):
            parse_ply(wrong)
        (tmp_path / "a b.ply").write_bytes(wrong)
        scene = load_scene(auto(tmp_path))
        assert scene.points is None and any("a b.ply: the points are left out" in note for note in scene.notes)


def as_nerfstudio(root, capture):
    fx, fy, cx, cy = capture.intrinsics[0]
    frames = [{"file_path": f"images/{name}", "transform_matrix": [*pose.tolist(), [0, 0, 0, 1]]} for name, pose in zip(capture.names, capture.poses, strict=True)]
    save_transforms(root, {"camera_model": "PINHOLE", "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": 72, "h": 54, "frames": frames})


def as_llff(root, capture):
    depths = -(capture.points - capture.poses[0, :, 3]) @ capture.poses[0, :, 2]
    write_llff(root, capture, (0.8 * depths.min(), 1.2 * depths.max()))


def as_dtu(root, capture):
    centre = capture.points.mean(axis=0)
    write_dtu(root, capture, centre, np.linalg.norm(capture.points - centre, axis=1).max())


@pytest.mark.parametrize("convert, name", [(as_nerfstudio, "nerf"), (as_llff, "llff"), (as_dtu, "dtu")])
def test_trains(demo_scene, tmp_path, make_trainer, convert, name):
    """The demo scene in each other dialect is learned."""
    convert(tmp_path, read_capture(demo_scene, auto(demo_scene)))
    (tmp_path / ("image" if name == "dtu" else "images")).symlink_to(demo_scene / "images")
    trainer = make_trainer(scene=tmp_path)
    assert any(note.startswith(f"--data_format {name}, ") for note in trainer.scene.notes)
    before = np.mean([advance(trainer, 1).loss for _ in range(10)])
    advance(trainer, 200)
    assert np.mean([advance(trainer, 1).loss for _ in range(10)]) < 0.6 * before


def test_short_fuzz():
    """In a process of its own, as it forks and limits memory."""
    command = [sys.executable, str(ROOT / "tests" / "fuzz_readers.py"), "--seconds", "1", "--seed", "1000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 0 finds") == len(SCENES)
