"""The page and the picture of --vis_pose: what is written, and what Chromium shows of it."""

import json
import re
import subprocess

import cv2
import numpy as np
import pytest

from nerf.errors import UserError
from nerf.scene import load_scene
from nerf.scene.preview_page import page
from scene_files import options, ring_scene
from test_viewer_browser import CHROMIUM, CHROMIUM_FLAGS

TRAINING, HELD_OUT, CUBE = (31, 119, 180), (214, 39, 40), (127, 127, 127)


def content(file):
    return json.loads(re.search(r"const scene = (\{.*\});\n", file.read_text()).group(1))


def test_page_and_picture_are_written(tmp_path):
    ring_scene(tmp_path)
    scene = load_scene(options(tmp_path, vis_pose=True, workspace=tmp_path / "new" / "work space"))
    folder = tmp_path / "new" / "work space"
    assert sorted(path.name for path in folder.iterdir()) == ["poses.html", "poses.png"] and str(folder / "poses.html") in scene.notes[-1]
    assert cv2.imread(str(folder / "poses.png")).shape[1] == 1800
    told = content(folder / "poses.html")
    names = {group["name"]: group["labels"] for group in told["cameras"]}
    assert names["held out"] == [scene.names[i] for i in scene.val] and sorted(name for part in names.values() for name in part) == scene.names
    apexes = np.array(told["cameras"][0]["frusta"])[:, :3]
    assert np.allclose(apexes, scene.cameras.poses[scene.train, :, 3], atol=1e-4)
    assert [box["name"] for box in told["boxes"]] == ["cube", "box"] and np.abs(told["boxes"][0]["lines"]).max() == scene.bound


def test_the_page_needs_no_network_and_names_cannot_break_it(tmp_path):
    names = ["</script><script>alert(1)</script>.png", 'a "b" \\ \udc80.png', "фото 1.png"]
    text = page("<b>scene</b>", {"training": ("#1f77b4", names, np.zeros((3, 5, 3)))}, {}, np.zeros((0, 3)), 2)
    text.encode()
    assert not re.search(r"(src|href)=|https?://|import ", text) and text.count("</script>") == 1
    (tmp_path / "page").write_text(text)
    assert content(tmp_path / "page")["cameras"][0]["labels"] == names


def test_a_workspace_that_is_a_file(tmp_path):
    ring_scene(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="poses.html"):
        load_scene(options(tmp_path, vis_pose=True, workspace=tmp_path / "file"))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
def test_chromium_shows_cameras_points_and_cube(tmp_path):
    ring_scene(tmp_path)
    load_scene(options(tmp_path, vis_pose=True, workspace=tmp_path))
    flags = [flag for flag in CHROMIUM_FLAGS if "port" not in flag]
    shot = tmp_path / "shot.png"
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", (tmp_path / "poses.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    seen = cv2.imread(str(shot))[..., ::-1].astype(int)
    for colour in (TRAINING, HELD_OUT, CUBE):
        assert (np.abs(seen - colour).max(axis=2) < 40)[100:].sum() > 100, colour
