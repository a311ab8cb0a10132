"""A toy model, a trainer of it and a websocket page, for the tests of the viewer."""

import contextlib
import math
import socket
import threading
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from nerf.evaluation import Rendered
from nerf.options import parse_options
from nerf.scene.cameras import PERSPECTIVE, Cameras
from nerf.viewer import Eye, opencv_wxyz

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
