"""The viewer in a real browser: headless Chromium sees the model, and a click on a training camera goes there."""

import base64
import json
import math
import shutil
import subprocess
import time
import urllib.request

import cv2
import numpy as np
import pytest

from nerf.viewer import opengl_pose
from viewer_page import BALL, FLOOR, ring, wait_until

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
