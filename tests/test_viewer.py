"""The viewer: cameras converted exactly, and a real server seen by a websocket client and by a headless browser."""

import base64
import contextlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nerf import viewer as viewer_module
from nerf.errors import UserError
from nerf.evaluation import Rendered
from nerf.options import parse_options
from nerf.scene.cameras import PERSPECTIVE, Cameras
from nerf.viewer import (
    Eye,
    Painter,
    Viewer,
    opencv_wxyz,
    opengl_pose,
    pinhole,
    subpixel,
)

BALL, FLOOR = (0.9, 0.2, 0.1), (0.2, 0.4, 0.8)


def toy_render(cameras, index):
    """A red ball of radius 0.5 about the origin over a blue floor z = -0.5, on white, traced exactly."""
    width, height = cameras.sizes[index]
    fx, fy, cx, cy = cameras.intrinsics[index]
    y, x = np.mgrid[:height, :width] + 0.5
    local = np.stack([(x - cx) / fx, -(y - cy) / fy, -np.ones_like(x)], axis=-1)
    pose = cameras.poses[index].astype(np.float64)
    direction = (local / np.linalg.norm(local, axis=-1, keepdims=True)) @ pose[:, :3].T
    origin = pose[:, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        b, c = direction @ origin, origin @ origin - 0.25
        ball = -b - np.sqrt(b * b - c)
        floor = (-0.5 - origin[2]) / direction[..., 2]
    ball, floor = (np.where(t > 0, t, np.inf) for t in (ball, floor))
    depth = np.minimum(ball, floor)
    rgb = np.where((ball <= floor)[..., None], BALL, FLOOR)
    rgb[~np.isfinite(depth)] = 1.0
    opacity = np.isfinite(depth)
    return Rendered(rgb.astype(np.float32), np.where(opacity, depth, 0).astype(np.float32), opacity.astype(np.float32))


def ring(count=8, radius=2.0):
    """Cameras round the origin, at its height, looking at it."""
    poses = []
    for angle in np.arange(count) * 2 * np.pi / count:
        back = np.array([np.cos(angle), np.sin(angle), 0.0])
        right = np.array([-np.sin(angle), np.cos(angle), 0.0])
        poses.append(np.column_stack([right, [0, 0, 1], back, radius * back]))
    return Cameras(
        poses=np.array(poses, dtype=np.float32), intrinsics=np.tile(np.float32([60, 60, 40, 30]), (count, 1)),
        distortion=np.zeros((count, 6), np.float32), lens=np.full(count, PERSPECTIVE, np.int32),
        sizes=np.tile(np.int32([80, 60]), (count, 1)), near=np.linspace(0.25, 0.5, count, dtype=np.float32), far=np.full(count, np.inf, np.float32))  # fmt: skip


class ToyTrainer:
    """What the viewer asks of a trainer, and a record of the calls."""

    def __init__(self, *flags):
        port = free_port()
        self.options = parse_options(["scene", "--port", str(port), "--radius", "3", *flags])
        self.scene = SimpleNamespace(cameras=ring(), train=np.arange(8))
        self.step, self.model = SimpleNamespace(steps=16), SimpleNamespace(render=self.render)
        self.clock, self.ema = SimpleNamespace(paused=self.within("paused")), SimpleNamespace(swapped=self.within("swapped"))
        self.sizes, self.threads, self.saves, self.inside, self.before_render = [], set(), 0, [], lambda: None

    def render(self, cameras, index):
        assert "swapped" in self.inside
        assert cameras.near.tolist() == [0.25], "the page's picture starts where the photos' views do"
        self.before_render()
        self.sizes.append(tuple(cameras.sizes[index]))
        self.threads.add(threading.get_ident())
        return toy_render(cameras, index)

    def save(self):
        assert self.inside == ["paused"]
        self.saves += 1

    def within(self, name):
        @contextlib.contextmanager
        def context():
            self.inside.append(name)
            try:
                yield
            finally:
                self.inside.remove(name)

        return context


class Page:
    """The browser's side of viser's wire protocol, as far as these tests need it."""

    def __init__(self, port, eye):
        connect = pytest.importorskip("websockets.sync.client").connect
        import viser

        self.socket = connect(f"ws://127.0.0.1:{port}", subprotocols=[f"viser-v{viser.__version__}"], max_size=None)
        self.look(eye)

    def send(self, message):
        import msgspec

        self.socket.send(msgspec.msgpack.encode(message.as_serializable_dict()))

    def look(self, eye):
        from viser import _messages

        self.send(_messages.ViewerCameraMessage(
            wxyz=eye.wxyz, position=eye.position, fov=eye.fovy, near=0.01, far=1000.0, image_height=eye.height, image_width=eye.width,
            look_at=(0.0, 0.0, 0.0), up_direction=(0.0, 0.0, 1.0)))  # fmt: skip

    def set_value(self, handle, value):
        from viser import _messages

        self.send(_messages.GuiUpdateMessage(uuid=handle._impl.uuid, updates={"value": value}))

    def messages(self, seconds=0.0):
        """All messages that arrive until none came for `seconds`, as dicts."""
        found = []
        with contextlib.suppress(TimeoutError):
            while True:
                found += self._unpack(self.socket.recv(timeout=seconds))
        return found

    def picture(self, seconds=0.3):
        """The newest background picture that has arrived [H, W, 3] uint8, or None."""
        pictures = [m["rgb_data"] for m in self.messages(seconds) if m["type"] == "BackgroundImageMessage"]
        return cv2.imdecode(np.frombuffer(pictures[-1], np.uint8), cv2.IMREAD_COLOR)[..., ::-1] if pictures else None

    @staticmethod
    def _unpack(data):
        import msgspec
        import zstandard

        packed = int.from_bytes(data[8:16], "little")
        return msgspec.msgpack.decode(zstandard.decompress(data[16:16 + packed]))["messages"]  # fmt: skip


EAST = Eye(tuple(opencv_wxyz(ring().poses[0])), (3.0, 0.0, 0.0), math.radians(50), 320, 240)


@pytest.fixture
def served():
    """A function: flags -> (trainer, viewer), closed at the end."""
    pytest.importorskip("viser", reason="viser is not installed")
    with contextlib.ExitStack() as stack:

        def start(*flags):
            trainer = ToyTrainer(*flags)
            viewer = Viewer(trainer)
            stack.callback(viewer.close)
            return trainer, viewer

        yield start


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


def wait_until(condition, seconds=10.0):
    end = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < end, "nothing happened"
        time.sleep(0.01)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def settle(viewer):
    """Refreshes until a camera at rest has its full frame."""
    for _ in range(6):
        viewer.refresh()
        time.sleep(0.1)


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

    helper = threading.Thread(target=interrupt)
    helper.start()
    viewer.serve()
    helper.join()
    assert not trainer.inside
    assert not viewer._training_controls.visible
    assert "Ctrl-C ends it" in capsys.readouterr().out
    viewer_module._check_port(trainer.options.port)


# ---- a real browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMIUM_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--enable-unsafe-swiftshader", "--remote-debugging-port=0", "--window-size=1000,800",
]  # fmt: skip


class Browser:
    """Chromium without a window, driven through its debugging protocol."""

    def __init__(self, url, profile, meanwhile):
        self.meanwhile, self.calls = meanwhile, 0
        self.process = subprocess.Popen(
            [CHROMIUM, *CHROMIUM_FLAGS, f"--user-data-dir={profile}", url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        self.told = profile / "DevToolsActivePort"

    def connect(self):
        from websockets.sync.client import connect

        wait_until(lambda: self.told.exists() and self.told.read_text().count("\n"), 30)
        with urllib.request.urlopen(f"http://127.0.0.1:{self.told.read_text().split()[0]}/json") as answer:
            tab = next(target for target in json.load(answer) if target["type"] == "page")
        self.socket = connect(tab["webSocketDebuggerUrl"], max_size=None)

    def call(self, method, **params):
        self.calls += 1
        self.socket.send(json.dumps({"id": self.calls, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv(timeout=30))).get("id") != self.calls:
            pass
        return answer["result"]

    def screenshot(self):
        data = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] / 255.0

    def click(self, x, y):
        for kind, button, held in (("mouseMoved", "none", 0), ("mousePressed", "left", 1), ("mouseReleased", "left", 0)):
            self.call("Input.dispatchMouseEvent", type=kind, x=float(x), y=float(y), button=button, buttons=held, clickCount=held)
            self.run(0.3)

    def run(self, seconds):
        """Goes on with what the page's server has to do."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            self.meanwhile()
            time.sleep(0.02)

    def close(self):
        self.process.terminate()
        self.process.wait(20)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
def test_chromium_shows_the_model_and_a_click_on_a_camera_goes_there(served, tmp_path):
    trainer, viewer = served("--radius", "4")
    browser = Browser(f"http://127.0.0.1:{trainer.options.port}", tmp_path / "profile", viewer.refresh)
    try:
        browser.connect()
        wait_until(lambda: viewer._visitors, 40)
        visitor = next(iter(viewer._visitors.values()))
        wait_until(lambda: np.allclose(visitor.eye.position, (4, 0, 0), atol=1e-6))
        wait_until(lambda: browser.run(1.0) or near(browser.screenshot(), 0.5, 0.55, BALL), 30)
        seen = browser.screenshot()
        assert near(seen, 0.3, 0.9, FLOOR)
        assert near(seen, 0.6, 0.2, (1, 1, 1))
        photo = ring().poses[5]  # on the far side, left of the ball, where the panel is not
        height, width = seen.shape[:2]
        browser.click(*on_screen(visitor.eye, photo[:, 3], width, height))
        browser.run(2.0)
        np.testing.assert_allclose(opengl_pose(visitor.eye.wxyz, visitor.eye.position), photo, atol=1e-4)
        assert near(browser.screenshot(), 0.5, 0.6, BALL), "seen from there, the ball is in the middle again"
    finally:
        browser.close()


def near(picture, x, y, colour):
    """Whether the median colour about a place (shares of width and height) is `colour`, whatever thin lines cross it."""
    height, width = picture.shape[:2]
    patch = picture[int(y * height) - 12 : int(y * height) + 12, int(x * width) - 12 : int(x * width) + 12]
    return np.abs(np.median(patch, axis=(0, 1)) - colour).max() < 0.05


def on_screen(eye, point, width, height):
    """Where a world point appears on a page of that size."""
    pose = opengl_pose(eye.wxyz, eye.position).astype(np.float64)
    x, y, z = pose[:, :3].T @ (point - pose[:, 3])
    focal = height / 2 / math.tan(eye.fovy / 2)
    return width / 2 - focal * x / z, height / 2 + focal * y / z
