"""The viewer: cameras converted exactly, and a real server seen by a websocket client."""

import contextlib
import math
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nerf import viewer as viewer_module
from nerf.errors import UserError
from nerf.viewer import (
    Painter,
    Viewer,
    opencv_wxyz,
    opengl_pose,
    pinhole,
    subpixel,
)
from viewer_page import EAST, Page, ToyTrainer, ring, settle, toy_render, wait_until


@pytest.fixture
def page(served):
    """A function: flags -> (trainer, viewer, page that is connected and looks from EAST)."""
    with contextlib.ExitStack() as stack:

        def start(*flags):
            trainer, viewer = served(*flags)
            client = Page(trainer.options.port, EAST)
            stack.callback(client.socket.close)
            wait_until(lambda: viewer._visitors)
            return trainer, viewer, client

        yield start


# ---- cameras


def test_pose_of_the_identity_is_a_half_turn_about_x():
    pose = opengl_pose((1.0, 0.0, 0.0, 0.0), (1.0, 2.0, 3.0))
    assert pose.dtype == np.float32
    np.testing.assert_array_equal(pose, [[1, 0, 0, 1], [0, -1, 0, 2], [0, 0, -1, 3]])


def test_a_quaternion_written_out():
    # A quarter turn about z: the camera's right is the world's y, its down the world's -x, and it still looks along z.
    pose = opengl_pose((math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)), (0.0, 0.0, 0.0))
    np.testing.assert_allclose(pose[:, :3], [[0, 1, 0], [1, 0, 0], [0, 0, -1]], atol=1e-7)


def test_pose_and_quaternion_invert_each_other():
    for rotation in Rotation.random(50, random_state=1).as_matrix():
        pose = np.column_stack([rotation, [1.0, -2.0, 0.5]])
        np.testing.assert_allclose(opengl_pose(opencv_wxyz(pose), pose[:, 3]), pose, atol=1e-6)


def test_conversion_agrees_with_viser():
    transforms = pytest.importorskip("viser.transforms")
    for pose in ring().poses:
        rotation = transforms.SO3(opencv_wxyz(pose)).as_matrix()
        np.testing.assert_allclose(rotation, np.column_stack([pose[:, 0], -pose[:, 1], -pose[:, 2]]), atol=1e-6)


def test_pinhole_has_the_angles_of_the_page_at_any_size():
    for size in ((320, 240), (101, 77), (7, 3)):
        fx, fy, cx, cy = pinhole(EAST, size).intrinsics[0]
        assert 2 * math.atan(size[1] / 2 / fy) == pytest.approx(EAST.fovy, rel=1e-6)
        assert size[0] / 2 / fx == pytest.approx(math.tan(EAST.fovy / 2) * EAST.width / EAST.height, rel=1e-6)
        assert (cx, cy) == (size[0] / 2, size[1] / 2)


def test_bands_make_up_the_whole_picture():
    size = (64, 48)
    whole = toy_render(pinhole(EAST, size), 0)
    painter = Painter(toy_render)
    painter.rate = 640 / viewer_module.BAND_SECONDS  # ten rows a band to begin with
    painted = painter.paint(EAST, size, (0.0, 0.0), lambda: False)
    for part, expected in zip(painted, whole, strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-5)


def test_painting_is_given_up_between_bands():
    painter, calls = Painter(lambda cameras, index: calls.append(cameras.sizes[0]) or toy_render(cameras, index)), []
    painter.rate = 640 / viewer_module.BAND_SECONDS
    assert painter.paint(EAST, (64, 48), (0.0, 0.0), lambda: True) is None
    assert len(calls) == 1


def test_subpixel_offsets_begin_at_the_centre_and_are_even():
    offsets = np.array([subpixel(count) for count in range(64)])
    assert tuple(offsets[0]) == (0.0, 0.0)
    assert (np.abs(offsets) <= 0.5).all()
    assert (np.abs(offsets.mean(axis=0)) < 0.02).all()


# ---- the server


def test_port_in_use_is_named(served):
    trainer, _ = served()
    with pytest.raises(UserError, match=f"--port {trainer.options.port} .*choose another"):
        Viewer(trainer)


def test_missing_viser_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(UserError, match="pip install 'viser=="):
        Viewer(ToyTrainer())


def test_start_prints_the_address_and_the_tunnel(served, capsys):
    port = served()[0].options.port
    printed = capsys.readouterr().out
    assert f"http://127.0.0.1:{port}" in printed
    assert f"ssh -L {port}:127.0.0.1:{port} " in printed
    assert len(printed.splitlines()) == 1


def test_refresh_costs_microseconds_without_a_page(served):
    trainer, viewer = served()
    began = time.perf_counter()
    for _ in range(1000):
        viewer.refresh()
    assert (time.perf_counter() - began) / 1000 < 50e-6
    assert not trainer.sizes


def test_a_page_gets_the_picture_of_its_camera(page):
    trainer, viewer, client = page()
    settle(viewer)
    seen = client.picture()
    assert seen.shape == (240, 320, 3)
    expected = toy_render(pinhole(EAST, (320, 240)), 0).rgb * 255
    assert np.abs(seen.astype(float) - expected).mean() < 3
    assert trainer.threads == {threading.get_ident()}
    assert not trainer.inside


def test_coarse_while_moving_full_at_rest_then_nothing(page):
    trainer, viewer, client = page()
    viewer._painter.rate = 1e4
    viewer.refresh()
    assert len(trainer.sizes) == 1
    assert np.prod(trainer.sizes[0]) <= 1.1e4 * viewer_module.COARSE_SECONDS
    settle(viewer)
    assert client.picture().shape == (240, 320, 3)
    frames = len(trainer.sizes)
    settle(viewer)
    assert len(trainer.sizes) == frames, "neither camera nor weights changed"
    client.look(EAST._replace(position=(4.0, 0.0, 0.0)))
    wait_until(lambda: next(iter(viewer._visitors.values())).eye.position == (4.0, 0.0, 0.0))
    viewer.refresh()
    assert len(trainer.sizes) > frames


def test_training_is_not_held_up_by_a_slow_picture_but_a_pause_shows_it_sharp(page):
    trainer, viewer, client = page()
    rate = 4e3  # pixels/s: the whole picture would take 19 s
    for _ in range(6):
        trainer.step.steps += 16
        viewer._next_frame, viewer._painter.rate = 0.0, rate
        time.sleep(0.1)
        viewer.refresh()
    width, height = next(iter(viewer._visitors.values())).size
    assert 4 * rate * viewer_module.COARSE_SECONDS < width * height < 1.1 * rate * viewer_module.TRAINING_SECONDS
    client.set_value(viewer._paused, True)
    wait_until(lambda: viewer._paused.value)
    end = time.perf_counter() + 1
    viewer.refresh(stopped=lambda: time.perf_counter() > end)
    assert client.picture().shape == (240, 320, 3)


def test_new_weights_are_shown_but_take_a_share_of_the_time_only(page):
    trainer, viewer, _ = page()
    settle(viewer)
    trainer.before_render = lambda: time.sleep(0.02)
    trainer.step.steps += 16
    viewer._next_frame = 0.0
    frames = len(trainer.sizes)
    viewer.refresh()
    assert len(trainer.sizes) > frames
    frames = len(trainer.sizes)
    trainer.step.steps += 16
    viewer.refresh()
    assert len(trainer.sizes) == frames, "the frame before took 20 ms, so that three times as long belongs to training"
    time.sleep(0.2)
    viewer.refresh()
    assert len(trainer.sizes) > frames


def test_frames_at_rest_are_averaged_up_to_max_spp(page):
    trainer, viewer, client = page("--max_spp", "4")
    trainer.step.steps += 16
    for _ in range(10):
        settle(viewer)
    visitor = next(iter(viewer._visitors.values()))
    assert visitor.count == 4
    expected = np.mean([toy_render(pinhole(EAST, (320, 240), subpixel(k)), 0).rgb for k in range(4)], axis=0)
    np.testing.assert_allclose(visitor.sums[0] / 4, expected, atol=1e-5)
    assert np.abs(client.picture().astype(float) - expected * 255).mean() < 3


def test_resolution_limit_and_kinds_of_picture(page):
    _, viewer, client = page("--W", "100", "--H", "100")
    settle(viewer)
    assert client.picture().shape == (75, 100, 3)
    client.set_value(viewer._kind, "opacity")
    wait_until(lambda: viewer._kind.value == "opacity")
    settle(viewer)
    opacity = toy_render(pinhole(EAST, (100, 75)), 0).opacity
    assert np.abs(client.picture()[..., 0] / 255.0 - opacity).mean() < 0.05
    client.set_value(viewer._kind, "depth")
    wait_until(lambda: viewer._kind.value == "depth")
    settle(viewer)
    assert np.ptp(client.picture().astype(int), axis=-1).max() > 100, "depth is coloured"


def test_pausing_blocks_and_serves_frames_until_the_page_or_a_signal_ends_it(page):
    trainer, viewer, client = page()
    client.set_value(viewer._paused, True)
    wait_until(lambda: viewer._paused.value)
    frames = []

    def act():
        time.sleep(0.5)
        frames.append(len(trainer.sizes))
        client.look(EAST._replace(position=(5.0, 0.0, 0.0)))
        wait_until(lambda: len(trainer.sizes) > frames[0])
        client.set_value(viewer._paused, False)

    helper = threading.Thread(target=act)
    helper.start()
    viewer.refresh()
    helper.join()
    assert frames[0] > 0
    assert not viewer._paused.value
    client.set_value(viewer._paused, True)
    wait_until(lambda: viewer._paused.value)
    viewer.refresh(stopped=lambda: True)


def test_saving_is_done_by_the_training_thread(page):
    from viser import _messages

    trainer, viewer, client = page()
    button = viewer._save_button
    client.send(_messages.GuiUpdateMessage(uuid=button._impl.uuid, updates={"value": True}))
    wait_until(lambda: viewer._save_wanted)
    assert trainer.saves == 0
    viewer.refresh()
    assert trainer.saves == 1


def test_a_click_on_a_training_camera_goes_there(page):
    from viser import _messages

    _, _, client = page()
    client.messages(0.3)
    client.send(_messages.SceneNodeClickMessage("/cameras/3", None, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.5, 0.5), None))
    told = {message["type"]: message for message in client.messages(0.5)}
    pose = ring().poses[3]
    np.testing.assert_allclose(told["SetCameraPositionMessage"]["position"], pose[:, 3], atol=1e-6)
    np.testing.assert_allclose(told["SetCameraLookAtMessage"]["look_at"], (0, 0, 0), atol=1e-5)


def test_a_new_page_is_told_where_to_start(page):
    _, _, client = page("--fovy", "35")
    told = {message["type"]: message for message in client.messages(0.3) if message.get("initial")}
    np.testing.assert_allclose(told["SetCameraPositionMessage"]["position"], (3, 0, 0), atol=1e-6)
    np.testing.assert_allclose(told["SetCameraLookAtMessage"]["look_at"], (0, 0, 0), atol=1e-6)
    assert told["SetCameraFovMessage"]["fov"] == pytest.approx(math.radians(35))


def test_a_page_that_leaves_is_forgotten(page):
    trainer, viewer, client = page()

    def leave():
        client.socket.close()
        wait_until(lambda: not viewer._visitors)

    trainer.before_render = leave
    viewer.refresh()
    frames = len(trainer.sizes)
    viewer.refresh()
    assert len(trainer.sizes) == frames


def test_a_camera_that_is_none_is_not_rendered(page):
    trainer, viewer, client = page()
    settle(viewer)
    frames = len(trainer.sizes)
    for bad in (EAST._replace(position=(math.nan, 0.0, 0.0)), EAST._replace(wxyz=(0.0,) * 4), EAST._replace(width=0)):
        client.look(bad)
        wait_until(lambda: next(iter(viewer._visitors.values())).eye is None)
        settle(viewer)
        assert len(trainer.sizes) == frames


def test_serve_shows_frames_until_interrupted(page, capsys):
    trainer, viewer, _ = page()

    def interrupt():
        wait_until(lambda: trainer.sizes and trainer.sizes[-1] == (320, 240))
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with this signal ignored
    try:
        helper = threading.Thread(target=interrupt)
        helper.start()
        viewer.serve()
        helper.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not trainer.inside
    assert not viewer._training_controls.visible
    assert "Ctrl-C ends it" in capsys.readouterr().out
    viewer_module._check_port(trainer.options.port)
