"""Videos: the written files are decoded again and their frames, sizes and colours checked."""

import re
import subprocess
import time
import weakref

import imageio.v3 as iio
import numpy as np
import pytest

from nerf.errors import UserError
from nerf.evaluation import Rendered
from nerf.images import depth_picture
from nerf.scene.cameras import Cameras
from nerf.video import PART, render_video

NAMES = ["rgb.mp4", "depth.mp4", "opacity.mp4"]
COLOURS = np.array([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.1, 0.2, 0.9], [0.5, 0.5, 0.5], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], np.float32)


def make_cameras(count=6, size=(64, 48)):
    return Cameras(
        poses=np.repeat(np.eye(4, dtype=np.float32)[None, :3], count, axis=0),
        intrinsics=np.full((count, 4), 50, np.float32),
        distortion=np.zeros((count, 6), np.float32),
        lens=np.zeros(count, np.int32),
        sizes=np.array([size] * count, np.int32).reshape(count, 2),
        near=np.zeros(count, np.float32),
        far=np.full(count, np.inf, np.float32),
    )


def plain(cameras, index):
    """A frame of one colour, its depth from 1 on the left to 4 on the right plus the frame's number."""
    width, height = cameras.sizes[index]
    rgb = np.broadcast_to(COLOURS[index % len(COLOURS)], (height, width, 3))
    depth = np.broadcast_to(np.linspace(1, 4, width, dtype=np.float32) + index, (height, width))
    return Rendered(rgb, depth, np.ones_like(depth))


def test_the_decoded_video_has_the_frames_and_their_colours(tmp_path):
    said = []
    paths = render_video(plain, make_cameras(), tmp_path / "results", report=said.append)
    assert [path.name for path in paths] == NAMES
    frames = iio.imread(paths[0])
    assert frames.shape == (6, 48, 64, 3)
    np.testing.assert_allclose(frames.mean(axis=(1, 2)), COLOURS * 255, atol=4)
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(NAMES)
    assert said[-1].startswith("6 frames in")


def test_the_file_is_what_players_want(tmp_path):
    import imageio_ffmpeg

    path, *_ = render_video(plain, make_cameras(), tmp_path, fps=12)
    said = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)], capture_output=True, text=True, check=False).stderr
    assert "h264" in said and re.search(r"yuv420p\(tv, bt709[,)]", said) and "12 fps" in said and "64x48" in said


def test_the_depth_range_stays_the_same(tmp_path):
    """A frame's number is in its depth: with a range of its own each frame would look the same."""
    _, path, _ = render_video(plain, make_cameras(), tmp_path)
    frames = iio.imread(path).astype(int)
    left = frames[:, 20:28, 4:8].mean(axis=(1, 2))
    assert left[0, 0] > left[0, 2] + 30 and left[-1, 2] > left[-1, 0] + 30  # red, near, to blue, far
    _, path, _ = render_video(plain, make_cameras(), tmp_path, depth_range=(1.0, 100.0))
    expected = depth_picture(*plain(make_cameras(), 3)[1:], limits=(1.0, 100.0)).astype(int)
    np.testing.assert_allclose(iio.imread(path)[3].astype(int)[:, 8:-8].mean(), expected[:, 8:-8].mean(), atol=6)


def test_each_frame_is_rendered_once(tmp_path):
    seen = []

    def counting(cameras, index):
        seen.append(index)
        return plain(cameras, index)

    render_video(counting, make_cameras(20), tmp_path)
    assert sorted(seen) == list(range(20))


def test_frames_are_written_as_they_come(tmp_path):
    """Past frames are not kept in memory, and neither file has its name before it is complete."""
    frames, alive, names = [], [], set()

    def watching(cameras, index):
        alive.append(sum(frame() is not None for frame in frames))
        names.update(path.name for path in tmp_path.iterdir())
        frame = plain(cameras, index)
        frame = frame._replace(rgb=frame.rgb.copy())
        frames.append(weakref.ref(frame.rgb))
        return frame

    render_video(watching, make_cameras(20), tmp_path)
    assert max(alive) <= 8  # four that were rendered ahead, two that wait, one that is being encoded and the last
    assert not set(NAMES) & names
    render_video(watching, make_cameras(20), tmp_path, depth_range=(1.0, 9.0))
    assert max(alive[-20:]) <= 4


def numbered(cameras, index):
    """A frame whose grey level, and opacity, is five times its number (by 51, for lack of levels)."""
    width, height = cameras.sizes[index]
    level = np.full((height, width), 5 * (index % 51) / 255, np.float32)
    return Rendered(np.repeat(level[..., None], 3, axis=-1), np.ones_like(level), level)


def frame_numbers(path):
    return np.rint(iio.imread(path).mean(axis=(1, 2, 3)) / 5).astype(int).tolist()


def frame_times(path):
    """Seconds at which each frame is shown, from the file."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-vf", "showinfo", "-f", "null", "-"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return [float(time) for time in re.findall(r"pts_time:([0-9.]+)", said)]


@pytest.mark.parametrize("count", [1, PART - 1, PART, PART + 1, 3 * PART + 2])
def test_every_frame_is_there_once_from_the_first_to_the_last(tmp_path, count):
    """Also where parts meet, at even times."""
    path, _, opacity = render_video(numbered, make_cameras(count), tmp_path, fps=24, depth_range=(0.5, 2.0))
    assert frame_numbers(path) == frame_numbers(opacity) == [index % 51 for index in range(count)]
    np.testing.assert_allclose(frame_times(path), np.arange(count) / 24, atol=2e-3)


def interrupted(folder, count, at, **options):
    """Renders until a frame, as far as Ctrl-C there lets it."""

    def render(cameras, index):
        if index == at:
            raise KeyboardInterrupt
        return numbered(cameras, index)

    with pytest.raises(KeyboardInterrupt):
        render_video(render, make_cameras(count), folder, **options)


def frames_made(folder, count, said=None, **options):
    made = []

    def render(cameras, index):
        made.append(index)
        return numbered(cameras, index)

    path, *_ = render_video(render, make_cameras(count), folder, report=said and said.append, **options)
    assert frame_numbers(path) == [index % 51 for index in range(count)]
    assert not (folder / "video_parts").exists()
    return made


def test_an_interrupted_video_goes_on_after_its_last_whole_part(tmp_path):
    count, said = 2 * PART + 20, ["begin"]
    interrupted(tmp_path, count, 2 * PART + 5, identity="step 100")
    (tmp_path / "video_parts" / ".rgb_000096.77.partial.mp4").write_bytes(b"of a process that was killed")
    assert frames_made(tmp_path, count, said, identity="step 100") == list(range(2 * PART, count))
    assert "goes on from the parts in" in said[1]


@pytest.mark.parametrize("change", [{"identity": "step 200"}, {"fps": 12}, {"depth_range": (0.5, 2.0)}, {"count": PART + 31}])
def test_another_video_begins_anew(tmp_path, change):
    options = {"count": PART + 30, "identity": "step 100", **change}
    interrupted(tmp_path, PART + 30, PART + 7, identity="step 100")
    assert sorted(frames_made(tmp_path, **options)) == list(range(options["count"]))


def test_a_broken_plan_begins_anew(tmp_path):
    interrupted(tmp_path, PART + 30, PART + 7)
    (tmp_path / "video_parts" / "plan.json").write_text("[")
    assert sorted(frames_made(tmp_path, PART + 30)) == list(range(PART + 30))


def test_frames_are_encoded_while_the_next_ones_render(tmp_path, monkeypatch):
    """The encoder takes as long as the renderer; one after the other they would take twice as long."""
    monkeypatch.setattr("nerf.video.depth_picture", lambda depth, opacity, limits: time.sleep(0.05) or depth_picture(depth, opacity, limits))

    def slow(cameras, index):
        time.sleep(0.05)
        return plain(cameras, index)

    started = time.perf_counter()
    render_video(slow, make_cameras(40, (16, 16)), tmp_path, depth_range=(1.0, 90.0))
    assert time.perf_counter() - started < 40 * 0.1 * 0.9


@pytest.mark.parametrize("size", [(63, 48), (64, 47), (33, 17), (2, 2), (1, 1)])
def test_odd_sizes(tmp_path, size):
    path, *_ = render_video(plain, make_cameras(3, size), tmp_path)
    frames = iio.imread(path)
    assert frames.shape == (3, size[1] + size[1] % 2, size[0] + size[0] % 2, 3)
    np.testing.assert_allclose(frames.mean(axis=(1, 2)), COLOURS[:3] * 255, atol=4)


def test_one_frame_and_frames_that_are_not_finite(tmp_path):
    def broken(cameras, index):
        frame = plain(cameras, index)
        return Rendered(frame.rgb * np.nan, frame.depth * np.nan, frame.opacity * 0)

    path, *_ = render_video(broken, make_cameras(1), tmp_path)
    assert iio.imread(path).shape == (1, 48, 64, 3)


def test_a_failure_leaves_the_old_video_and_only_whole_parts(tmp_path):
    render_video(plain, make_cameras(), tmp_path)
    before = (tmp_path / "rgb.mp4").read_bytes()

    def failing(cameras, index):
        if index == 4:
            raise RuntimeError("out of memory")
        return plain(cameras, index)

    with pytest.raises(RuntimeError, match="out of memory"):
        render_video(failing, make_cameras(9), tmp_path, depth_range=(1.0, 9.0))
    assert (tmp_path / "rgb.mp4").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*NAMES, "video_parts"])
    assert [path.name for path in (tmp_path / "video_parts").iterdir()] == ["plan.json"]


def one_sentence(caught):
    return "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_no_ffmpeg_is_one_sentence(tmp_path, monkeypatch):
    import imageio_ffmpeg

    def missing():
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    with pytest.raises(UserError, match="pip install imageio-ffmpeg") as caught:
        render_video(plain, make_cameras(), tmp_path)
    assert one_sentence(caught)


def test_an_ffmpeg_that_is_not_there_or_fails_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "ffmpeg"))
    with pytest.raises(UserError, match="Cannot run ffmpeg .*IMAGEIO_FFMPEG_EXE") as caught:
        render_video(plain, make_cameras(), tmp_path / "out")
    assert one_sentence(caught)
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\necho 'no space\nleft' >&2\nexit 3\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    with pytest.raises(UserError, match="no space left") as caught:
        render_video(plain, make_cameras(50, (640, 480)), tmp_path / "out")
    assert one_sentence(caught)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["video_parts", "plan.json"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="Cannot write"):
        render_video(plain, make_cameras(), tmp_path / "file" / "results")


def test_no_frames_mixed_sizes_and_a_wrong_frame(tmp_path):
    with pytest.raises(UserError, match="--video_frames"):
        render_video(plain, make_cameras(0), tmp_path)
    mixed = make_cameras()
    mixed.sizes[2] = 32, 32
    with pytest.raises(ValueError, match="different sizes"):
        render_video(plain, mixed, tmp_path)
    with pytest.raises(ValueError, match=r"a frame has shape \(48, 64, 3\) and its camera \(10, 10, 3\)"):
        render_video(lambda cameras, index: plain(make_cameras(), index), make_cameras(4, (10, 10)), tmp_path)
