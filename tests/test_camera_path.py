"""Camera paths as files: what is written is read again, what nerfstudio writes is understood, what is wrong is one sentence."""

import json
import math

import numpy as np
import pytest

from nerf.camera_path import load_camera_path, save_camera_path
from nerf.errors import UserError
from nerf.trajectory import circle
from test_trajectory import look_at, orbit

POSE = np.vstack([look_at((2, 0, 1), (0, 0, 0)), [0, 0, 0, 1]])


def content(**changes):
    frame = {"camera_to_world": POSE.ravel().tolist(), "fov": 60, "aspect": 1.5}
    whole = {"camera_type": "perspective", "render_width": 301, "render_height": 200, "fps": 12, "camera_path": [frame, {**frame, "fov": 30.0}],
             "keyframes": [], "smoothness_value": 0.5, "is_cycle": False, "crop": None}  # fmt: skip
    return {key: value for key, value in {**whole, **changes}.items() if value is not ...}


def load(tmp_path, text):
    (tmp_path / "path.json").write_text(text if isinstance(text, str) else json.dumps(text))
    return load_camera_path(tmp_path / "path.json", orbit())


def test_what_nerfstudio_writes(tmp_path):
    cameras, fps = load(tmp_path, content())
    assert len(cameras) == 2 and fps == 12
    np.testing.assert_allclose(cameras.poses, np.stack([POSE[:3]] * 2), atol=1e-6)
    focal = 100 / math.tan(math.radians(30)), 100 / math.tan(math.radians(15))
    np.testing.assert_allclose(cameras.intrinsics, [[f, f, 151, 100] for f in focal], rtol=1e-6)
    assert cameras.sizes.tolist() == [[302, 200]] * 2 and not cameras.distortion.any() and not cameras.lens.any()
    assert cameras.near[0] == orbit().near.min() and cameras.far[0] == orbit().far.max()
    rows = content(camera_path=[{"camera_to_world": POSE.tolist(), "fov": 60}])
    np.testing.assert_allclose(load(tmp_path, rows).cameras.poses[0], POSE[:3], atol=1e-6)
    doubled = content(camera_path=[{"camera_to_world": (2 * POSE).tolist(), "fov": 60}])  # homogeneous: the same matrix
    np.testing.assert_allclose(load(tmp_path, doubled).cameras.poses[0], POSE[:3], atol=1e-6)


@pytest.mark.parametrize(("changes", "fps"), [({"fps": ..., "seconds": 0.5}, 4), ({"fps": ...}, 24), ({"fps": 29.97, "seconds": 9}, 29.97)])
def test_frames_a_second(tmp_path, changes, fps):
    assert load(tmp_path, content(**changes)).fps == pytest.approx(fps)


def test_what_is_written_is_read_again(tmp_path):
    path = circle(orbit(jitter=0.1), 30)
    save_camera_path(tmp_path / "out" / "path.json", path, 24)
    cameras, fps = load_camera_path(tmp_path / "out" / "path.json", orbit())
    assert fps == 24 and (cameras.sizes == path.sizes).all()
    np.testing.assert_allclose(cameras.poses, path.poses, atol=1e-6)
    np.testing.assert_allclose(cameras.intrinsics[:, 1], path.intrinsics[:, 1], rtol=1e-6)


NAN = json.dumps(content()).replace(str(POSE.ravel().tolist()[3]), "NaN", 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Cannot read the camera path"),
        ("[" * 100_000, "Cannot read the camera path"),
        ("[]", "holds a list where a camera path is an object"),
        (content(camera_path=...), "camera_path must be a list of one frame or more"),
        (content(camera_path=[]), "camera_path must be a list of one frame or more"),
        (content(camera_path=[3]), "frame 0: camera_to_world must be 16 numbers"),
        (content(camera_path=[{"fov": 50}]), "frame 0: camera_to_world must be 16 numbers"),
        (content(camera_path=[{"camera_to_world": [1, 2, "three"], "fov": 50}]), "camera_to_world must be 16 numbers"),
        (content(camera_path=[{"camera_to_world": [0] * 16, "fov": 50}]), "path.json, frame 0"),
        (NAN, "NaN"),
        (content(camera_path=[{"camera_to_world": POSE.T.ravel().tolist(), "fov": 50}]), "frame 0: the last row of camera_to_world is 2 0 1 1 in place of 0 0 0 1"),
        (content(camera_path=[{"camera_to_world": POSE.T.tolist(), "fov": 50}]), "row by row: is it transposed?"),
        (content(camera_path=[{"camera_to_world": [*POSE.ravel().tolist()[:15], float("nan")], "fov": 50}]), "the last row of camera_to_world is 0 0 0 nan"),
        (content(camera_path=[{"camera_to_world": POSE.tolist()}]), "frame 0: fov is None; it must be a number from 0.1 to 179"),
        (content(camera_path=[{"camera_to_world": POSE.tolist(), "fov": 180}]), "fov is 180"),
        (content(camera_type="equirectangular"), "camera_type is 'equirectangular'; only perspective"),
        (content(render_width=0), "render_width is 0; it must be a number from 1 to 16384"),
        (content(render_height="tall"), "render_height is tall"),
        (content(render_height=True), "render_height is True"),
        (content(fps=0), "fps is 0"),
        (content(fps=..., seconds=-1), "seconds is -1"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, text, words):
    with pytest.raises(UserError, match="path.json") as caught:
        load(tmp_path, text)
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="Cannot read the camera path .*nowhere.json .No such file"):
        load_camera_path(tmp_path / "nowhere.json", orbit())
