"""The COLMAP reader: both file kinds, every lens, photos that are not there, and files that are not what they should be."""

import random
import shutil
import time

import numpy as np
import pytest

from nerf.errors import UserError
from nerf.scene import FISHEYE, PERSPECTIVE, load_scene
from nerf.scene.colmap import read_colmap
from nerf.scene.colmap_model import read_model
from nerf.scene.extent import MIN_NEAR
from scene_files import (
    options,
    plain_model,
    ring_model,
    ring_scene,
    write_binary,
    write_photo,
    write_text,
)

FILES = ("cameras.bin", "images.bin", "points3D.bin")


def assert_same(a, b):
    assert a.cameras == b.cameras and np.array_equal(a.point_ids, b.point_ids) and np.array_equal(a.points, b.points)
    for one, other in zip(a.images, b.images, strict=True):
        assert (one.name, one.camera) == (other.name, other.camera)
        # Normalising an already normalised quaternion may move its last bit.
        assert np.allclose(one.quaternion, other.quaternion, rtol=0, atol=1e-15) and np.array_equal(one.translation, other.translation)
        assert np.array_equal(one.xy, other.xy) and np.array_equal(one.point_ids, other.point_ids)


@pytest.mark.parametrize("name", ["fox", "bust"])
def test_text_equals_binary(scene_data, tmp_path, name):
    model = read_model(scene_data(name) / "sparse" / "0")
    write_text(tmp_path / "text", *plain_model(model))
    write_binary(tmp_path / "binary", *plain_model(model))
    assert_same(read_model(tmp_path / "text"), model)
    assert_same(read_model(tmp_path / "binary"), model)


def test_scene_from_text_equals_scene_from_binary(tmp_path):
    a, b = load_scene(options(ring_scene(tmp_path / "a"))), load_scene(options(ring_scene(tmp_path / "b", kind=".txt")))
    assert np.allclose(a.cameras.poses, b.cameras.poses) and np.allclose(a.points, b.points) and np.array_equal(a.aabb, b.aabb)


@pytest.mark.parametrize("place", ["sparse/0", "colmap_sparse/0", "colmap"])
def test_places(tmp_path, place):
    assert len(load_scene(options(ring_scene(tmp_path, place=place))).cameras) == 9


@pytest.mark.parametrize("kind", [".bin", ".txt"])
def test_the_largest_of_several_models(tmp_path, kind):
    """COLMAP's mapper numbers the models that it cannot join by their age, not by their size."""
    write = write_binary if kind == ".bin" else write_text
    ring_scene(tmp_path, kind=kind)
    cameras, images, points = ring_model()
    for number, count in ((0, 2), (2, 9), (10, 9), (11, 3)):
        write(tmp_path / "sparse" / str(number), cameras, images[:count], points)
    if kind == ".txt":
        file = tmp_path / "sparse" / "2" / "images.txt"
        file.write_text(f"# Image list with two lines of data per image:\n# Number of images: 9, mean observations per image: 200\n{file.read_text()}")
    capture = read_colmap(tmp_path, options(tmp_path))
    assert len(capture.names) == 9 and capture.source == tmp_path / "sparse" / "2"
    assert any("not sparse/10 with 9, sparse/11 with 3, sparse/0 with 2;" in note for note in capture.notes if note.startswith("warning:"))
    images_file = tmp_path / "sparse" / "2" / f"images{kind}"
    images_file.write_bytes(b"\xff" * 100)
    assert read_colmap(tmp_path, options(tmp_path)).source == tmp_path / "sparse" / "10"
    write(tmp_path / "sparse" / "2", cameras, images, points)
    (tmp_path / "sparse" / "2" / f"cameras{kind}").write_bytes(b"\xff" * 100)
    capture = read_colmap(tmp_path, options(tmp_path))
    assert capture.source == tmp_path / "sparse" / "10" and any(note.startswith("warning: sparse/2 is passed over: ") for note in capture.notes)
    for number in (0, 10, 11):
        shutil.rmtree(tmp_path / "sparse" / str(number))
    with pytest.raises(UserError, match=f"sparse/2/cameras{kind}: "):
        read_colmap(tmp_path, options(tmp_path))


@pytest.mark.parametrize("model, parameters, intrinsics, distortion, lens", [
    ("SIMPLE_PINHOLE", [60, 32, 24], [60, 60, 32, 24], [0] * 6, PERSPECTIVE),
    ("PINHOLE", [60, 61, 32, 24], [60, 61, 32, 24], [0] * 6, PERSPECTIVE),
    ("SIMPLE_RADIAL", [60, 32, 24, 0.1], [60, 60, 32, 24], [0.1, 0, 0, 0, 0, 0], PERSPECTIVE),
    ("RADIAL", [60, 32, 24, 0.1, 0.2], [60, 60, 32, 24], [0.1, 0.2, 0, 0, 0, 0], PERSPECTIVE),
    ("OPENCV", [60, 61, 32, 24, 0.1, 0.2, 0.3, 0.4], [60, 61, 32, 24], [0.1, 0.2, 0, 0, 0.3, 0.4], PERSPECTIVE),
    ("OPENCV_FISHEYE", [60, 61, 32, 24, 0.1, 0.2, 0.3, 0.4], [60, 61, 32, 24], [0.1, 0.2, 0.3, 0.4, 0, 0], FISHEYE),
    ("SIMPLE_RADIAL_FISHEYE", [60, 32, 24, 0.1], [60, 60, 32, 24], [0.1, 0, 0, 0, 0, 0], FISHEYE),
    ("RADIAL_FISHEYE", [60, 32, 24, 0.1, 0.2], [60, 60, 32, 24], [0.1, 0.2, 0, 0, 0, 0], FISHEYE),
    ("SIMPLE_FISHEYE", [60, 32, 24], [60, 60, 32, 24], [0] * 6, FISHEYE),
    ("FISHEYE", [60, 61, 32, 24], [60, 61, 32, 24], [0] * 6, FISHEYE),
    ("FULL_OPENCV", [60, 61, 32, 24, 0.1, 0.2, 0.3, 0.4, 0.5, 0, 0, 0], [60, 61, 32, 24], [0.1, 0.2, 0.5, 0, 0.3, 0.4], PERSPECTIVE),
])
@pytest.mark.parametrize("kind", [".bin", ".txt"])
def test_lenses(tmp_path, kind, model, parameters, intrinsics, distortion, lens):
    cameras = load_scene(options(ring_scene(tmp_path, kind=kind, camera=(model, 64, 48, parameters)))).cameras
    assert np.allclose(cameras.intrinsics, intrinsics) and np.allclose(cameras.distortion, distortion) and (cameras.lens == lens).all()


@pytest.mark.parametrize("kind", [".bin", ".txt"])
@pytest.mark.parametrize("model, named", [("THIN_PRISM_FISHEYE", "THIN_PRISM_FISHEYE"), ("EUCM", "EUCM"), ("MADE_UP", "MADE_UP|number 99")])
def test_camera_model_we_lack(tmp_path, kind, model, named):
    ring_scene(tmp_path, kind=kind, camera=(model, 64, 48, [60, 61, 32, 24] + [0.0] * 8))
    with pytest.raises(UserError, match=rf"cameras{kind}: camera model ({named}) is not supported \(supported: SIMPLE_PINHOLE, .*\); undistort the photos with `colmap image_undistorter`$"):
        load_scene(options(tmp_path))


@pytest.mark.parametrize("place", [9, 10, 11])
def test_lens_with_terms_that_rays_do_not_follow(tmp_path, place):
    parameters = [60, 61, 32, 24, 0.1] + [0.0] * 7
    parameters[place] = 0.01
    ring_scene(tmp_path, camera=("FULL_OPENCV", 64, 48, parameters))
    with pytest.raises(UserError, match="cameras.bin: a FULL_OPENCV camera has k4, k5 or k6, .*; undistort the photos"):
        load_scene(options(tmp_path))


def test_text_of_windows(tmp_path):
    """With a mark before the text, and two characters to end a line."""
    ring_scene(tmp_path / "a", kind=".txt"), ring_scene(tmp_path / "b", kind=".txt")
    for file in (tmp_path / "b" / "sparse" / "0").iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert_same(*(read_model(tmp_path / name / "sparse" / "0") for name in "ab"))


def test_sub_folders_and_missing_photos(tmp_path):
    cameras, images, points = ring_model()
    images = [(f"{'left' if i % 2 else 'right eye'}/{image[0]}", *image[1:]) for i, image in enumerate(images)]
    write_text(tmp_path / "sparse" / "0", cameras, images, points)
    for i, image in enumerate(images[1:]):
        write_photo(tmp_path / "images" / image[0], seed=i)
    write_photo(tmp_path / "images" / "left" / "unregistered.png")
    capture = read_colmap(tmp_path, options(tmp_path))
    assert len(capture.names) == 8 and capture.names[0] == "left/001.png" and capture.names[-1] == "right eye/008.png"
    assert any("1 of 9 registered photos are missing" in note for note in capture.notes)
    assert any("1 photos beside these are not registered in sparse/0" in note for note in capture.notes)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match="none of the 9 photos .* which does not exist"):
        read_colmap(tmp_path, options(tmp_path))


def test_no_photo_of_that_name(tmp_path):
    ring_scene(tmp_path)
    for photo in (tmp_path / "images").iterdir():
        photo.rename(photo.with_suffix(".PNG"))
    with pytest.raises(UserError, match="none of the 9 photos .* which holds 000.PNG"):
        load_scene(options(tmp_path))


def test_downscale(tmp_path):
    """The reduced folder is taken as it is, with the intrinsics of its own sizes; without it photos are reduced here."""
    ring_scene(tmp_path)
    for i in range(9):
        write_photo(tmp_path / "images_4" / f"{i:03d}.png", size=(17, 12))
    scene = load_scene(options(tmp_path, downscale=4))
    assert (scene.cameras.sizes == (17, 12)).all() and np.allclose(scene.cameras.intrinsics[0], [60 * 17 / 64, 61 / 4, 32 * 17 / 64, 6])
    scene = load_scene(options(tmp_path, downscale=3))
    assert (scene.cameras.sizes == (21, 16)).all() and np.allclose(scene.cameras.intrinsics[0], [60 * 21 / 64, 61 / 3, 32 * 21 / 64, 8])
    for downscale in (0, -2):
        with pytest.raises(UserError, match=f"--downscale {downscale}"):
            load_scene(options(tmp_path, downscale=downscale))


def write_llff_layout(root, smaller):
    """A scene as in nerf_llff_data: photos IMG_*.JPG, whose reductions have the names `smaller`."""
    cameras, images, points = ring_model()
    images = [(f"IMG_{4026 + i}.JPG", *image[1:]) for i, image in enumerate(images)]
    write_binary(root / "sparse" / "0", cameras, images, points)
    for image in images:
        write_photo(root / "images" / image[0])
    return [write_photo(root / "images_4" / name, size=(16, 12), seed=i) for i, name in enumerate(smaller)]


@pytest.mark.parametrize("name", ["image{:03d}.png", "IMG_{}.png"])
def test_reduced_photos_with_names_of_their_own(tmp_path, name):
    pixels = write_llff_layout(tmp_path, [name.format(i + 4026 * name.startswith("IMG")) for i in range(9)])
    scene = load_scene(options(tmp_path, downscale=4))
    assert scene.names[3] == "IMG_4029.JPG" and np.allclose(scene.cameras.intrinsics, [15, 61 / 4, 8, 6])
    assert all(np.array_equal(scene.photos.image(i, (16, 12)), pixels[i]) for i in range(9))
    assert any("such as image000.png for IMG_4026.JPG" in note for note in scene.notes) == name.startswith("image")


def test_reduced_photos_that_are_not_all_there(tmp_path):
    """Names that cannot be told apart are not guessed: such photos are reduced here."""
    pixels = write_llff_layout(tmp_path, ["IMG_4026.JPG", "IMG_4027.png", "IMG_4028.png", "IMG_4028.bmp", "other.png"])
    capture = read_colmap(tmp_path, options(tmp_path, downscale=4))
    assert [file.relative_to(tmp_path).as_posix() for file in capture.files[:4]] == ["images_4/IMG_4026.JPG", "images_4/IMG_4027.png", "images/IMG_4028.JPG", "images/IMG_4029.JPG"]
    assert capture.at_full_size.tolist() == [False] * 2 + [True] * 7 and any("7 photos are not in images_4" in note for note in capture.notes)
    assert not any("not registered" in note for note in capture.notes)
    scene = load_scene(options(tmp_path, downscale=4))
    assert (scene.cameras.sizes == (16, 12)).all() and np.array_equal(scene.photos.image(1, (16, 12)), pixels[1])
    shutil.rmtree(tmp_path / "images")
    assert read_colmap(tmp_path, options(tmp_path, downscale=4)).names == ["IMG_4026.JPG", "IMG_4027.JPG"]
    for place in sorted((tmp_path / "images_4").iterdir()):
        place.rename(place.with_stem(f"image_{place.stem}{place.suffix[1:]}"))
    with pytest.raises(UserError, match="none of the 9 photos .* is in .*images_4"):
        read_colmap(tmp_path, options(tmp_path, downscale=4))


@pytest.mark.parametrize("folder", ["images/", "left eye/", ""])
def test_names_below_the_scene_folder(tmp_path, folder):
    """COLMAP was run with the scene's own folder as --image_path."""
    cameras, images, points = ring_model()
    images = [(f"{folder}{image[0]}", *image[1:]) for image in images]
    write_binary(tmp_path / "sparse" / "0", cameras, images, points)
    for i, image in enumerate(images):
        write_photo(tmp_path / image[0], seed=i)
        if folder:
            write_photo(tmp_path / f"{folder[:-1]}_2" / f"{i:03d}.png", size=(32, 24))
    assert load_scene(options(tmp_path)).names[8] == f"{folder}008.png"
    capture = read_colmap(tmp_path, options(tmp_path, downscale=2))
    assert capture.files[8] == tmp_path / (f"{folder[:-1]}_2/008.png" if folder else "008.png") and capture.at_full_size.all() == (not folder)


def test_no_model(tmp_path):
    with pytest.raises(UserError, match="the folder is empty"):
        load_scene(options(tmp_path))
    write_photo(tmp_path / "images" / "a.png")
    (tmp_path / "transforms.json").write_text("{}")
    with pytest.raises(UserError, match=r"looked for cameras and images.* holds images/, transforms.json\); pass --data_format nerf"):
        load_scene(options(tmp_path))


def test_no_image_registered(tmp_path):
    cameras, _, points = ring_model()
    write_binary(tmp_path / "sparse" / "0", cameras, [], points)
    with pytest.raises(UserError, match="registers no image"):
        load_scene(options(tmp_path))


@pytest.mark.parametrize("pose, message", [
    ({"quaternion": [np.nan, 0, 0, 0]}, "003.png holds NaN"), ({"quaternion": [0, 0, 0, 0]}, "003.png holds .*zero quaternion"),
    ({"translation": [0, np.inf, 0]}, "003.png holds NaN, inf"), ({"translation": [0, 1e200, 0]}, "003.png: the camera pose holds"),
])
@pytest.mark.parametrize("kind", [".bin", ".txt"])
def test_poses_that_are_none(tmp_path, kind, pose, message):
    ring_scene(tmp_path, kind=kind)
    cameras, images, points = ring_model()
    name, camera, quaternion, translation, *rest = images[3]
    images[3] = (name, camera, pose.get("quaternion", quaternion), pose.get("translation", translation), *rest)
    (write_binary if kind == ".bin" else write_text)(tmp_path / "sparse" / "0", cameras, images, points)
    with pytest.raises(UserError, match=message):
        load_scene(options(tmp_path))


def test_camera_that_is_not_there(tmp_path):
    ring_scene(tmp_path)
    write_binary(tmp_path / "sparse" / "0", {5: ("PINHOLE", 64, 48, [1, 1, 1, 1])}, *ring_model()[1:])
    with pytest.raises(UserError, match="names camera 1, which cameras.bin lacks"):
        load_scene(options(tmp_path))


def test_without_points(tmp_path):
    ring_scene(tmp_path)
    (tmp_path / "sparse" / "0" / "points3D.bin").unlink()
    scene = load_scene(options(tmp_path, enable_cam_near_far=True))
    assert scene.points is None and scene.bound == 2 and scene.aabb.tolist() == [-2] * 3 + [2] * 3
    near = scene.cameras.near
    assert (near == near[0]).all() and MIN_NEAR < near[0] <= 0.5 and (scene.cameras.far == np.inf).all(), "where pictures overlap"
    assert any("no effect" in note for note in scene.notes) and any("few other views" in note for note in scene.notes)


def test_points_not_finite_are_dropped(tmp_path):
    ring_scene(tmp_path)
    cameras, images, points = ring_model()
    points |= {7: [np.nan, 0, 0], 9: [0, 1e300, 0]}
    write_binary(tmp_path / "sparse" / "0", cameras, images, points)
    scene = load_scene(options(tmp_path, enable_cam_near_far=True))
    assert len(scene.points) == 198 and np.isfinite(scene.points).all() and any("2 sparse points" in note for note in scene.notes)


def copied_model(source, target):
    for name in FILES:
        shutil.copyfile(source / "sparse" / "0" / name, target / name)


@pytest.mark.parametrize("name", FILES)
def test_truncated_anywhere(scene_data, tmp_path, name):
    copied_model(scene_data("bust"), tmp_path)
    whole = (tmp_path / name).read_bytes()
    lengths = {*range(40), *range(len(whole) - 40, len(whole)), *random.Random(0).sample(range(len(whole)), 60)}
    for length in lengths:
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(UserError, match=f"{name}: .*truncated"):
            read_model(tmp_path)
    (tmp_path / name).write_bytes(whole + b"\0" * 5)
    with pytest.raises(UserError, match="5 bytes follow the last record"):
        read_model(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_random_bytes(tmp_path, name):
    """Noise is refused, or is by chance a model; it never crashes, hangs or takes memory."""
    write_binary(tmp_path, *ring_model())
    whole, source, start = (tmp_path / name).read_bytes(), random.Random(1), time.monotonic()
    refused = 0
    for i in range(300):
        content = bytearray(whole) if i % 3 else bytearray(source.randbytes(source.randrange(2000)))
        for _ in range(source.randrange(1, 20) if i % 3 else 0):
            content[source.randrange(min(len(content), 400))] = source.randrange(256)
        (tmp_path / name).write_bytes(content)
        try:
            read_model(tmp_path)
        except UserError as error:
            refused += 1
            assert str(tmp_path) in str(error) and len(str(error)) < 3000
    assert refused > 100 and time.monotonic() - start < 20


@pytest.mark.parametrize("name", ["cameras.txt", "images.txt", "points3D.txt"])
def test_mutated_text(tmp_path, name):
    write_text(tmp_path, *ring_model())
    whole, source = (tmp_path / name).read_bytes(), random.Random(2)
    for content in (b"\xff\xfe\x00", b"1 2\n", b"one PINHOLE 64 48 a b c d\n", b"\0" * 100):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name.replace("3D", ".*")):
            read_model(tmp_path)
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(source.randrange(1, 10)):
            content[source.randrange(min(len(content), 600))] = source.choice(b"-.0129 e\nxn#\xc3")
        (tmp_path / name).write_bytes(content)
        try:
            read_model(tmp_path)
        except UserError as error:
            assert str(tmp_path) in str(error)


def test_image_line_with_too_few_numbers(tmp_path):
    write_text(tmp_path, *ring_model())
    (tmp_path / "images.txt").write_text("1 1 0 0 0 2 2 1 name.png\n\n")
    with pytest.raises(UserError, match="images.txt: line 1 is not 'IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME'"):
        read_model(tmp_path)


def test_garbage_that_claims_much_is_refused_at_once(tmp_path):
    write_binary(tmp_path, *ring_model())
    for name in FILES:
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(b"\xff" * 8 + whole[8:])
        with pytest.raises(UserError, match=f"{name}: it claims 18446744073709551615"):
            read_model(tmp_path)
        (tmp_path / name).write_bytes(whole)
