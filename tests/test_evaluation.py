"""Evaluation: numbers, protocol, pictures and names, with renders whose errors are known."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from nerf.errors import UserError
from nerf.evaluation import (
    MEASURES,
    Rendered,
    evaluate,
    file_names,
    photo_on_white,
)
from nerf.images import depth_limits, depth_picture, error_picture, write_png
from nerf.scene.cameras import Cameras
from nerf.scene.masks import masks_of
from nerf.scene.photos import Photos

SIZES = [(24, 16), (20, 30), (24, 16), (33, 17)]  # width, height


def make_scene(channels=3, names=("a.png", "b.png", "c.png", "d.png")):
    rng = np.random.default_rng(7)
    count = len(SIZES)
    cameras = Cameras(
        poses=np.repeat(np.eye(4, dtype=np.float32)[None, :3], count, axis=0),
        intrinsics=np.full((count, 4), 20, dtype=np.float32),
        distortion=np.zeros((count, 6), dtype=np.float32),
        lens=np.zeros(count, dtype=np.int32),
        sizes=np.array(SIZES, dtype=np.int32),
        near=np.zeros(count, dtype=np.float32),
        far=np.full(count, np.inf, dtype=np.float32),
    )
    offsets = np.cumsum([0, *(width * height for width, height in SIZES)])
    photos = Photos(rng.integers(0, 256, (offsets[-1], channels), dtype=np.uint8), offsets)
    return SimpleNamespace(cameras=cameras, photos=photos, names=list(names), masks=None)


def perfect(scene, offset=0.0, broken=()):
    """A render that returns the photo plus `offset`, with a NaN pixel in the views `broken`."""

    def render(cameras, index):
        assert cameras is scene.cameras
        rgb = photo_on_white(scene, index) * np.float32(0.5) + np.float32(offset)
        if index in broken:
            rgb[2, 3] = np.nan
        depth = np.linspace(1, 5, rgb[..., 0].size, dtype=np.float32).reshape(rgb.shape[:2])
        return Rendered(rgb, depth, np.ones_like(depth))

    return render




def read_png(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def test_a_known_error_gives_the_known_psnr():
    scene = make_scene()
    scene.photos.pixels[:] = 100

    def render(cameras, index):
        height, width = cameras.sizes[index][::-1]
        return Rendered(np.full((height, width, 3), 110.4 / 255, dtype=np.float32), np.ones((height, width)), np.ones((height, width)))

    result = evaluate(render, scene, [0, 2])
    expected = -20 * np.log10(10 / 255)  # 110.4 is rounded to 110
    assert [image["psnr"] for image in result["images"]] == pytest.approx([expected] * 2, abs=1e-4)
    assert result["psnr"] == pytest.approx(expected, abs=1e-4)
    assert [image["name"] for image in result["images"]] == ["a.png", "c.png"]
    assert result["count"] == 2 and result["non_finite"] == 0


def test_files_and_numbers_in_the_folder(tmp_path):
    scene = make_scene(names=["cam1/a.jpg", "cam2/a.jpg", "../../a.jpg", "cam1_a.jpg"])
    folder = tmp_path / "inside" / "results"
    result = evaluate(perfect(scene, 0.1), scene, [0, 1, 2, 3], folder)
    assert json.loads((folder / "metrics.json").read_text()) == result
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside"]
    written = sorted(path.name for path in folder.iterdir())
    assert len(written) == 4 * 4 + 2
    for (width, height), image in zip(SIZES, result["images"], strict=True):
        for kind in ("rgb", "depth", "error", "photo"):
            assert read_png(folder / f"{image['file']}_{kind}.png").shape == (height, width, 3)
        photo = scene.photos.image(scene.names.index(image["name"]), (width, height))
        np.testing.assert_array_equal(read_png(folder / f"{image['file']}_photo.png"), photo)


def test_pictures_of_the_first_views_only(tmp_path):
    scene = make_scene()
    result = evaluate(perfect(scene, 0.1), scene, [0, 2, 3], tmp_path, pictures=1)
    assert len(result["images"]) == len(json.loads((tmp_path / "metrics.json").read_text())["images"]) == 3
    pictures = {f"a_{kind}.png" for kind in ("rgb", "depth", "error", "photo")}
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", *pictures}
    evaluate(perfect(scene, 0.1), scene, [0], tmp_path / "none", pictures=0)
    assert [path.name for path in (tmp_path / "none").iterdir()] == ["metrics.json"]


def test_the_render_is_written_in_its_own_colours(tmp_path):
    scene = make_scene()
    result = evaluate(perfect(scene, 0.201), scene, [1], tmp_path)
    expected = np.floor(np.clip(photo_on_white(scene, 1) * 0.5 + 0.201, 0, 1) * 255 + 0.5)
    np.testing.assert_array_equal(read_png(tmp_path / f"{result['images'][0]['file']}_rgb.png"), expected)


def test_a_view_that_is_not_finite_counts_and_does_not_crash(tmp_path):
    scene, lines = make_scene(), []
    result = evaluate(perfect(scene, broken=(1,)), scene, [0, 1, 2, 3], tmp_path, lines.append)
    assert result["non_finite"] == 1
    assert result["images"][1]["psnr"] is None and result["images"][1]["ssim"] is None and result["images"][1]["non_finite"] == 1
    others = [image["psnr"] for image in result["images"] if image["psnr"] is not None]
    assert len(others) == 3 and result["psnr"] == pytest.approx(np.mean(others))
    text = (tmp_path / "metrics.json").read_text()
    assert "NaN" not in text and "null" in text
    assert "1 of them" in lines[-1]
    error = read_png(tmp_path / "b_error.png")
    assert error[2, 3].mean() > 150  # the pixel that is not finite has the brightest colour


def test_nothing_finite_and_nothing_at_all():
    scene = make_scene()
    result = evaluate(perfect(scene, broken=(0, 1, 2, 3)), scene, [0, 1, 2, 3], report=print)
    assert result["psnr"] is None and result["ssim"] is None and result["non_finite"] == 4
    assert evaluate(perfect(scene), scene, [])["count"] == 0


def test_alpha_is_composited_on_white():
    scene = make_scene(channels=4)
    pixels = scene.photos.image(0, SIZES[0]).astype(np.float64) / 255
    expected = pixels[..., :3] * pixels[..., 3:] + 1 - pixels[..., 3:]
    np.testing.assert_allclose(photo_on_white(scene, 0), expected, atol=1e-6)
    scene.photos.pixels[:, 3] = 0
    white = Rendered(np.ones((16, 24, 3), np.float32), np.zeros((16, 24), np.float32), np.zeros((16, 24), np.float32))
    assert evaluate(lambda cameras, index: white, scene, [0])["psnr"] == pytest.approx(100)


def test_masked_pixels_do_not_count(tmp_path):
    """Whatever is rendered there, even what is not finite."""
    scene = make_scene()
    scene.photos.pixels[:] = 100
    allowed = [np.ones((height, width), bool) for width, height in SIZES]
    allowed[0][:8] = False
    scene.masks = masks_of(allowed)

    def render(cameras, index):
        height, width = cameras.sizes[index][::-1]
        rgb = np.full((height, width, 3), 110 / 255, dtype=np.float32)
        rgb[:8], rgb[0, 0] = 1.0, np.nan
        return Rendered(rgb, np.ones((height, width)), np.ones((height, width)))

    masked, whole = evaluate(render, scene, [0, 2], tmp_path)["images"]
    assert masked["non_finite"] == 0 and masked["psnr"] == pytest.approx(-20 * np.log10(10 / 255), abs=1e-4)
    assert masked["ssim"] is not None and whole["non_finite"] == 1 and whole["psnr"] is None
    assert (read_png(tmp_path / "a_error.png")[:8].sum(axis=-1) < 15).all()  # black: no error is counted there


def test_the_contact_sheet_has_a_row_a_view_and_a_column_a_kind(tmp_path):
    scene = make_scene()
    evaluate(perfect(scene, 0.1), scene, [0, 1, 2, 3], tmp_path)
    sheet = read_png(tmp_path / "contact_sheet.png").astype(int)
    assert sheet.shape[0] == 22 * 5 + sum(height for _, height in SIZES) + 4 * 4
    column, top = 33 + 4, 22  # the widest picture and a gap; the line of titles
    for index, (width, height) in enumerate(SIZES):
        for place, kind in enumerate(("photo", "rgb", "error", "depth")):
            shown = sheet[top + 22 : top + 22 + height, 4 + place * column : 4 + place * column + width]
            np.testing.assert_array_equal(shown, read_png(tmp_path / f"{scene.names[index][0]}_{kind}.png"))
        top += 22 + height + 4
    assert (sheet[22:44, :40] < 128).any()  # a caption is written


def test_large_pictures_and_many_views_fit_a_contact_sheet(tmp_path, monkeypatch):
    monkeypatch.setattr("nerf.evaluation.SHEET_ROWS", 3)
    monkeypatch.setattr("nerf.images.THUMBNAIL", 10)
    scene = make_scene()
    evaluate(perfect(scene, 0.1), scene, [0, 1, 2, 3], tmp_path)
    assert read_png(tmp_path / "contact_sheet.png").shape[:2] == (22 * 4 + 7 + 7 + 5 + 3 * 4, 4 * 14 + 4)  # views 0, 2 and 3
    assert len(list(tmp_path.glob("*_rgb.png"))) == 4


def test_lpips_is_measured_where_its_weights_are(monkeypatch):
    scene, lines = make_scene(), []
    assert evaluate(perfect(scene), scene, [0], report=lines.append)["lpips"] is None and "LPIPS is not measured" in lines[0]
    monkeypatch.setattr("nerf.evaluation.lpips_missing", lambda: None)
    monkeypatch.setitem(MEASURES, "lpips", lambda prediction, target: 0.25)
    result = evaluate(perfect(scene, broken=(1,)), scene, [0, 1], report=lines.append)
    assert result["lpips"] == 0.25 and [image["lpips"] for image in result["images"]] == [0.25, None] and "LPIPS 0.2500" in lines[-1]


def test_rendering_speed_is_that_of_the_median_view(monkeypatch):
    clock = iter([0, 0, 9, 9, 10, 10, 12, *range(12, 100)])  # the first view loads things for 9 s, the others take 1 and 2 s
    monkeypatch.setattr("nerf.evaluation.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr("nerf.evaluation.Progress.update", lambda *_: None)
    scene = make_scene()
    result = evaluate(perfect(scene), scene, [0, 2, 3])
    assert [image["seconds"] for image in result["images"]] == [9, 1, 2] and result["frames_per_second"] == 0.5 and result["seconds"] == 4


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ([0, 2], "every 2nd image"),
        ([0, 3], "every 3rd image"),
        ([0, 1, 2, 3], "every image"),
        ([1, 3], "2 of 4 images"),
        ([0, 1], "2 of 4 images"),
        ([3], "1 of 4 images"),
    ],
)
def test_the_protocol_says_which_views(indices, words):
    scene = make_scene()
    said = evaluate(perfect(scene), scene, np.array(indices))["protocol"]
    assert said.endswith(words)
    assert "rounded to uint8" in said and "11x11" in said


def test_a_render_of_another_size_is_an_error():
    scene = make_scene()
    small = Rendered(np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32))
    with pytest.raises(ValueError, match=r"b\.png has shape \(8, 8, 3\)"):
        evaluate(lambda cameras, index: small, scene, [1])


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    scene = make_scene()
    with pytest.raises(UserError, match="Cannot write .*another folder") as caught:
        evaluate(perfect(scene), scene, [0], tmp_path / "file" / "results")
    assert "\n" not in str(caught.value)


def test_progress_of_a_long_evaluation(monkeypatch):
    clock = iter(np.arange(0, 1000, 3.0))
    monkeypatch.setattr("nerf.evaluation.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    scene, lines = make_scene(), []
    evaluate(perfect(scene), scene, [0, 1, 2, 3], report=lines.append)
    assert len(lines) == 5 and lines[0].startswith("LPIPS is not measured: ")
    assert all("of 4 held-out views, PSNR" in line and "s left" in line for line in lines[1:4])
    assert lines[-1].startswith("4 held-out views: PSNR")


def test_file_names_never_escape_or_collide():
    names = ["a/b.png", "a_b.png", "A_b.PNG", "a-2.jpg", "a.jpg", "a.png", "/etc/passwd", "..", "", "...hidden.png"]
    names += ["x" * 300 + ".png", "y\\z:*?.png", "b\n.png"]
    files = file_names(names)
    assert len({file.lower() for file in files}) == len(names)
    for file in files:
        assert file and len(file) < 60 and not file.startswith(".") and not set(file) & set("/\\:*?\n\0")
    assert files[3] == "a-2" and files[4] == "a" and files[5] == "a-3"


def test_names_in_any_script_fit_a_file_system(tmp_path):
    file = file_names(["写真" * 100 + ".jpg"])[0]
    write_png(tmp_path / f"{file}_depth.png", np.zeros((4, 4, 3), np.uint8))
    assert (tmp_path / f"{file}_depth.png").is_file()


def test_write_png_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "sub" / "picture.png"
    write_png(path, np.zeros((5, 7, 3), np.float32))
    image = np.zeros((5, 7, 3), np.float32)
    image[..., 0], image[..., 2] = 1.2, np.nan
    write_png(path, image)
    np.testing.assert_array_equal(read_png(path), np.broadcast_to(np.array([255, 0, 0], np.uint8), (5, 7, 3)))
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


def test_depth_picture_near_is_red_far_is_blue_empty_is_white():
    depth = np.array([[1.0, 2.0, 4.0, 0.0]], dtype=np.float32)
    opacity = np.array([[1.0, 1.0, 1.0, 0.0]], dtype=np.float32)
    near, _, far, empty = depth_picture(depth, opacity, (1.0, 4.0))[0].astype(int)
    assert near[0] > near[2] + 50 and far[2] > far[0] - 20 and near[0] > far[0]
    assert (empty == 255).all()


def test_depth_picture_of_nothing_and_of_nonsense():
    nothing = np.zeros((6, 5), np.float32)
    assert depth_limits(nothing, nothing) is None
    assert (depth_picture(nothing, nothing) == 255).all()
    odd = np.full((6, 5), np.nan, np.float32)
    odd[0, 0], odd[0, 1], odd[0, 2] = np.inf, -1.0, 3.0
    assert depth_picture(odd, np.ones((6, 5))).shape == (6, 5, 3)
    assert depth_picture(nothing, odd).dtype == np.uint8
    with pytest.raises(ValueError, match="0 < near < far"):
        depth_picture(nothing, nothing, (0.0, 1.0))


def test_depth_limits_ignore_outliers_and_what_is_transparent():
    depth = np.full((100, 100), 2.0, np.float32)
    depth[:50] = 3.0
    depth[0, :20] = 500.0
    depth[-1] = 0.001
    opacity = np.ones_like(depth)
    opacity[-1] = 0.1
    assert depth_limits(depth, opacity) == pytest.approx((2.0, 3.0))


def test_flat_depth_has_a_picture():
    flat = np.full((4, 4), 2.0, np.float32)
    assert len(np.unique(depth_picture(flat, np.ones_like(flat)).reshape(-1, 3), axis=0)) == 1


def test_error_picture_grows_with_the_error():
    target = np.zeros((1, 4, 3), np.float32)
    prediction = np.array([0.0, 0.05, 0.15, 0.9], np.float32)[None, :, None].repeat(3, axis=2)
    brightness = error_picture(prediction, target).sum(axis=-1)[0]
    assert brightness[0] < 15 and (np.diff(brightness.astype(int)) > 0).all()
