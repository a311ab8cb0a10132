"""The viewer behind --gui: a web page that shows the model from each visitor's own camera, while it trains or afterwards.

Pictures are rendered in the thread that calls `Viewer.refresh` or `Viewer.serve` and nowhere else; the threads of viser, which serves the page,
only leave notes. viser's cameras are OpenCV's (x right, y down, looking along z), ours are OpenGL's; both live in the same world, z up.
"""

import contextlib
import dataclasses
import io
import logging
import math
import platform
import socket
import threading
import time
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from nerf.errors import UserError
from nerf.evaluation import Rendered
from nerf.images import depth_picture, to_uint8
from nerf.scene.cameras import OPENCV_TO_OPENGL, PERSPECTIVE, Cameras
from nerf.trajectory import attention_centre

VISER = "viser==1.1.1"
HOST = "127.0.0.1"  # this machine only: whoever sees the page can pause the training and write checkpoints
REST_SECONDS = 0.2  # a camera that has not moved for so long is at rest
COARSE_SECONDS = 0.05  # what a frame of a moving camera may take
TRAINING_SECONDS = 2.0  # what a frame may take from a running training
BAND_SECONDS = 0.25  # after this long a frame can be given up for a newer camera
BAND_PIXELS = 2**20  # bounds the memory that a frame takes
FIRST_RATE = 1e4  # pixels/s that are expected before the first frame is measured
SHARPER = 16  # how many times more pixels the next frame of a camera at rest has, until it is full
TRAINING_SHARE = 0.25  # part of the time that frames of cameras at rest may take from training
TELL_SECONDS = 0.5
WAIT_SECONDS = 0.05
MOST_FRUSTA = 300
FRUSTUM_SIZE = 0.1  # of the mean distance of the training cameras from the scene's centre
COARSE_QUALITY, FULL_QUALITY = 70, 92  # of the JPEG pictures
READOUTS = ("PSNR", "ms/step", "left")
PICTURES = {
    "colour": lambda rendered: to_uint8(rendered.rgb),
    "depth": lambda rendered: depth_picture(rendered.depth, rendered.opacity),
    "opacity": lambda rendered: np.repeat(to_uint8(rendered.opacity)[..., None], 3, axis=-1),
}


class Eye(NamedTuple):
    """A visitor's camera as viser tells it."""

    wxyz: tuple[float, ...]  # rotation, OpenCV camera to world
    position: tuple[float, ...]  # world units
    fovy: float  # vertical field of view in radians
    width: int  # of the page's canvas in pixels
    height: int


class Visitor:
    """One open page: its camera, and what it shows."""

    def __init__(self, client, eye):
        self.client, self.eye = client, eye
        self.here, self.moved = True, time.perf_counter()
        self.drawn = self.weights = None  # the request and the step that are on the page
        self.size, self.sums, self.count = (0, 0), None, 0
        self.served = 0.0

    def look(self, eye):
        """Notes a camera (None: the page is hidden); runs in viser's thread."""
        if eye != self.eye:
            self.eye, self.moved = eye, time.perf_counter()


class Painter:
    """Renders views in bands of rows, so that they can be given up half way, and learns how long that takes.

    Args:
        render: (Cameras, index) -> Rendered.
    """

    def __init__(self, render):
        self.render, self.rate = render, FIRST_RATE

    def paint(self, eye, size, offset, abandoned):
        """Rendered of `size` = (width, height), its pixels moved by `offset` [pixels]; None if abandoned() became true before the end."""
        width, height = size
        bands, row = [], 0
        while row < height:
            if bands and abandoned():
                return None
            most = max(1, int(min(self.rate * BAND_SECONDS, BAND_PIXELS) / width))
            rows = math.ceil((height - row) / math.ceil((height - row) / most))
            began = time.perf_counter()
            bands.append(self.render(pinhole(eye, size, offset, row, rows), 0))
            measured = rows * width / max(time.perf_counter() - began, 1e-6)
            self.rate = min(measured, math.sqrt(self.rate * measured))  # falls at once, so that no second band takes too long; rises slowly
            row += rows
        return Rendered(*(np.concatenate(parts) for parts in zip(*bands, strict=True)))

    def reduced(self, size, before, most):
        """The size of the next frame: `size` at most, else what should take COARSE_SECONDS or has SHARPER times the pixels of the size `before`,
        whichever is more, but no more than should take `most` seconds."""
        pixels = min(max(self.rate * COARSE_SECONDS, SHARPER * before[0] * before[1]), self.rate * most)
        factor = min(1.0, math.sqrt(pixels / (size[0] * size[1])))
        return tuple(max(1, round(side * factor)) for side in size)


class Viewer:
    """Serves the page on --port and renders for it.

    Args:
        trainer: has options (W, H, radius, fovy, max_spp, port), scene (cameras, train), model.render(cameras, index) -> Rendered,
            ema.swapped(), clock.paused(), step.steps and save(), as nerf.training.Trainer.
    Raises:
        UserError: viser is not installed, or the port cannot be listened on.
    """

    def __init__(self, trainer):
        self.trainer, self.options = trainer, trainer.options
        self._visitors, self._wake = {}, threading.Event()
        self._save_wanted, self._fields, self._next_tell, self._next_frame = False, {}, 0.0, 0.0
        near = trainer.scene.cameras.near.min(keepdims=True)  # before that nothing was learned
        self._painter = Painter(lambda cameras, index: trainer.model.render(dataclasses.replace(cameras, near=near), index))
        cameras = trainer.scene.cameras.select(trainer.scene.train)
        self._centre = attention_centre(np.asarray(cameras.poses, dtype=np.float64))
        self._server = _start_server(self.options.port)
        self._build_panel()
        self._show_cameras(cameras)
        self._place_start(cameras.poses[0].astype(np.float64))
        self._server.on_client_connect(self._welcome)
        self._server.on_client_disconnect(self._farewell)
        port = self.options.port
        print(f"Viewer: http://{HOST}:{port} (from another machine: ssh -L {port}:{HOST}:{port} {platform.node()}, then the same address)")

    # ---- for the training loop

    def update(self, step, fields):
        """Notes what the panel shows of the training. fields: label -> short text, of which READOUTS are shown."""
        self._fields = {"Step": str(step), **{label: fields[label] for label in READOUTS if label in fields}}

    def refresh(self, stopped=lambda: False):
        """Renders at most one frame, if a camera moved or the weights changed; writes a checkpoint if the page asks for one.

        While training is paused on the page this serves frames and returns when it is to go on or `stopped()` is true. The training clock
        stands still meanwhile. Takes microseconds where there is nothing to do.
        """
        if not (self._visitors or self._save_wanted or self._paused.value):
            return
        self._tell()
        if not (self._save_wanted or self._paused.value or self._due()):
            return
        with self.trainer.clock.paused():
            self._act(stopped, training=not self._paused.value)
            if self._paused.value:
                self._hold(stopped)

    def serve(self):
        """Shows the model as it is until SIGINT (Ctrl-C), then closes the page."""
        self._training_controls.visible, self._next_frame = False, 0.0
        self.update(self.trainer.step.steps, {})
        print("The viewer is open; Ctrl-C ends it.")
        try:
            while True:
                self._wait_or_act(lambda: False)
        except KeyboardInterrupt:
            pass
        finally:
            self.close()

    def close(self):
        """Stops serving."""
        self._server.stop()

    # ---- what happens in the calling thread

    def _hold(self, stopped):
        tqdm.write("Training is paused in the viewer.")
        while self._paused.value and not stopped():
            self._wait_or_act(stopped)
        if not self._paused.value:
            tqdm.write("Training goes on.")

    def _wait_or_act(self, stopped):
        self._tell()
        if not self._act(stopped, training=False):
            self._wake.wait(WAIT_SECONDS)
            self._wake.clear()

    def _act(self, stopped, training):
        """Saves if asked to and renders the frame that is due, if any; False if there was nothing to do."""
        saved, self._save_wanted = self._save_wanted, False
        if saved:
            self.trainer.save()
        visitor = self._due()
        if visitor is not None:
            began = time.perf_counter()
            self._draw(visitor, stopped, TRAINING_SECONDS if training else math.inf)
            now = time.perf_counter()
            self._next_frame = now + (now - began) * (1 / TRAINING_SHARE - 1) if training else now
        return saved or visitor is not None

    def _due(self):
        """The visitor who has waited longest of those who need a frame, or None."""
        now = time.perf_counter()
        due = [visitor for visitor in list(self._visitors.values()) if self._needs_frame(visitor, now)]
        return min(due, key=lambda visitor: visitor.served, default=None)

    def _needs_frame(self, visitor, now):
        if visitor.eye is None:
            return False
        if visitor.drawn != self._request(visitor):
            return True
        if now - visitor.moved < REST_SECONDS or (now < self._next_frame and not self._paused.value):
            return False
        return visitor.size != self._request(visitor)[2] or visitor.weights != self.trainer.step.steps or visitor.count < self.options.max_spp

    def _request(self, visitor):
        """What decides a picture besides the weights: (camera, kind of picture, size at rest)."""
        eye, limit = visitor.eye, self._limit.value
        factor = min(1.0, limit[0] / eye.width, limit[1] / eye.height)
        return eye, self._kind.value, tuple(max(1, round(side * factor)) for side in (eye.width, eye.height))

    def _draw(self, visitor, stopped, most):
        """Renders a frame of `most` seconds and sends it: small for a new request, then sharper, in full size, and averaged with those before."""
        request, weights = self._request(visitor), self.trainer.step.steps
        eye, kind, size = request
        drawn_size = self._painter.reduced(size, visitor.size if visitor.drawn == request else (0, 0), most)
        again = visitor.size == drawn_size == size and visitor.drawn == request and visitor.weights == weights
        count = visitor.count if again else 0
        with self.trainer.ema.swapped():
            frame = self._painter.paint(eye, drawn_size, subpixel(count), lambda: stopped() or not visitor.here or visitor.eye is not eye)
        visitor.served = time.perf_counter()
        if frame is None or not visitor.here:
            return
        visitor.sums = [total + part for total, part in zip(visitor.sums, frame, strict=True)] if again else list(frame)
        visitor.drawn, visitor.weights, visitor.size, visitor.count = request, weights, drawn_size, count + 1
        picture = PICTURES[kind](Rendered(*(total / visitor.count for total in visitor.sums)))
        quality = FULL_QUALITY if drawn_size == size else COARSE_QUALITY
        visitor.client.scene.set_background_image(picture, format="jpeg", jpeg_quality=quality)

    def _tell(self):
        now = time.perf_counter()
        if now < self._next_tell:
            return
        self._next_tell = now + TELL_SECONDS
        text = "  \n".join(f"{label}: **{value}**" for label, value in self._fields.items())
        if text != self._readout.content:
            self._readout.content = text

    # ---- what viser's threads do

    async def _welcome(self, client):
        visitor = Visitor(client, _eye(client.camera))

        async def look(camera):
            visitor.look(_eye(camera))
            self._wake.set()

        client.camera.on_update(look)
        self._visitors[client.client_id] = visitor
        self._wake.set()

    async def _farewell(self, client):
        visitor = self._visitors.pop(client.client_id, None)
        if visitor is not None:
            visitor.here = False

    def _ask_to_save(self, _):
        self._save_wanted = True
        self._wake.set()

    def _change_fovy(self, _):
        fovy = math.radians(self._fovy.value)
        self._server.initial_camera.fov = fovy
        for client in self._server.get_clients().values():
            client.camera.fov = fovy

    def _jump(self, pose, event):
        """Puts the camera of the page that clicked where a photo was taken; it then turns about a point in front, as far as the scene's centre."""
        camera, place = event.client.camera, pose[:, 3].astype(np.float64)
        with event.client.atomic():
            camera.position = place
            camera.wxyz = opencv_wxyz(pose)
            camera.look_at = place - pose[:, 2] * max(np.linalg.norm(place - self._centre), 1e-3)

    # ---- the page

    def _build_panel(self):
        gui, options = self._server.gui, self.options
        gui.configure_theme(show_logo=False, show_share_button=False)
        self._readout = gui.add_markdown("")
        self._training_controls = gui.add_folder("Training")
        with self._training_controls:
            self._paused = gui.add_checkbox("Pause", False)
            self._save_button = gui.add_button("Save checkpoint")
        self._save_button.on_click(self._ask_to_save)
        with gui.add_folder("Picture"):
            self._kind = gui.add_dropdown("Show", tuple(PICTURES))
            size = (options.W, options.H)
            self._limit = gui.add_vector2("At most", size, min=(16, 16), max=(16_384, 16_384), step=1, hint="Width and height in pixels")
            limits = {"min": min(5.0, options.fovy), "max": max(120.0, options.fovy)}
            self._fovy = gui.add_slider("Vertical angle", **limits, step=0.1, initial_value=options.fovy, hint="Field of view in degrees")
            self._shown = gui.add_checkbox("Training cameras", True)
        self._fovy.on_update(self._change_fovy)

    def _show_cameras(self, cameras):
        """A frustum for each training photo, or for MOST_FRUSTA evenly chosen ones."""
        scene = self._server.scene
        scene.set_up_direction("+z")
        root = scene.add_frame("/cameras", show_axes=False)
        self._shown.on_update(lambda _: setattr(root, "visible", self._shown.value))
        size = FRUSTUM_SIZE * float(np.linalg.norm(cameras.poses[:, :, 3] - self._centre, axis=1).mean())
        for index in np.unique(np.linspace(0, len(cameras) - 1, MOST_FRUSTA).round().astype(int)):
            pose, (fx, fy, _, _), (width, height) = cameras.poses[index], cameras.intrinsics[index], cameras.sizes[index]
            frustum = scene.add_camera_frustum(
                f"/cameras/{index}", fov=2 * math.atan(height / (2 * fy)), aspect=float(width * fy / (height * fx)), scale=size,
                thickness=1.5, thickness_units="screen", color=(230, 120, 20), wxyz=opencv_wxyz(pose), position=pose[:, 3])  # fmt: skip
            frustum.on_click(partial(self._jump, pose))

    def _place_start(self, pose):
        """A new page looks at the scene's centre from --radius away, on the side of the first photo."""
        away = pose[:, 3] - self._centre
        away = away if np.linalg.norm(away) > 1e-6 else pose[:, 2]
        start = self._server.initial_camera
        start.position = self._centre + self.options.radius * away / np.linalg.norm(away)
        start.look_at = self._centre
        start.fov = math.radians(self.options.fovy)


def opengl_pose(wxyz, position):
    """viser's camera -> camera to world [3, 4] float32, OpenGL axes. wxyz: quaternion of any length but 0; position: [3]."""
    rotation = Rotation.from_quat(np.roll(wxyz, -1)).as_matrix() * OPENCV_TO_OPENGL
    return np.column_stack([rotation, position]).astype(np.float32)


def opencv_wxyz(pose):
    """Camera to world [3, 4], OpenGL axes -> the unit quaternion [4] float64 of viser's camera."""
    return np.roll(Rotation.from_matrix(np.asarray(pose, dtype=np.float64)[:, :3] * OPENCV_TO_OPENGL).as_quat(), 1)


def pinhole(eye, size, offset=(0.0, 0.0), row=0, rows=None):
    """The rows [row, row + rows) of an eye's picture as Cameras of one view.

    size: (width, height) of the whole picture, which fills the eye's canvas whatever its own aspect; offset: x, y in pixels by which the
    pixels' centres are moved; rows: all by default.
    """
    width, height = size
    tangent = math.tan(eye.fovy / 2)
    fx, fy = width / 2 / (tangent * eye.width / eye.height), height / 2 / tangent
    return Cameras(
        poses=opengl_pose(eye.wxyz, eye.position)[None],
        intrinsics=np.array([[fx, fy, width / 2 - offset[0], height / 2 - offset[1] - row]], dtype=np.float32),
        distortion=np.zeros((1, 6), dtype=np.float32), lens=np.array([PERSPECTIVE], dtype=np.int32),
        sizes=np.array([[width, height - row if rows is None else rows]], dtype=np.int32),
        near=np.zeros(1, dtype=np.float32), far=np.full(1, np.inf, dtype=np.float32))  # fmt: skip


def subpixel(count):
    """Offset (x, y) in [-0.5, 0.5) of the frame number `count`: 0 for the first, then the additive recurrence of the plastic number (R2).

    Source: M. Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018: even for any number of frames.
    """
    plastic = 1.32471795724474602596
    return tuple((0.5 + count * step) % 1.0 - 0.5 for step in (1 / plastic, 1 / plastic**2))


def _eye(camera):
    """Eye of viser's camera, or None where it is not one that can be rendered: a page without an area, numbers that are not finite."""
    eye = Eye(tuple(map(float, camera.wxyz)), tuple(map(float, camera.position)), float(camera.fov), camera.image_width, camera.image_height)
    sound = np.isfinite([*eye.wxyz, *eye.position]).all() and any(eye.wxyz) and 0 < eye.fovy < math.pi
    return eye if sound and min(eye.width, eye.height) > 0 else None


def _start_server(port):
    try:
        import viser
    except ImportError:
        raise UserError(f"--gui needs a package that is not installed: pip install '{VISER}'") from None
    _check_port(port)
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # it writes a traceback for each connection that a browser opens in advance
    with contextlib.redirect_stdout(io.StringIO()):  # its banner; the viewer prints an address of its own
        server = viser.ViserServer(host=HOST, port=port, label="HSM", verbose=False)
    if server.get_port() != port:  # somebody took it since the check, and viser went on to the next
        server.stop()
        raise UserError(f"--port {port} is in use; choose another.")
    return server


def _check_port(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server: a port that was used a moment ago is free
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(f"--port {port} cannot be listened on ({error.strerror}); choose another.") from None
