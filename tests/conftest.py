"""What tests share: where real scenes are, which tests need a GPU, and trainers small enough for a CPU."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DATA = Path(os.environ.get("HSM_DATA", ROOT.parent / "shared" / "data"))


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def scene_data():
    """A function: name of a real scene -> its folder; skips the test where the folder is absent."""

    def find(name):
        if not (DATA / name).is_dir():
            pytest.skip(f"no scene {DATA / name} (set HSM_DATA to the folder that holds real scenes)")
        return DATA / name

    return find


@pytest.fixture(scope="session")
def demo_scene(tmp_path_factory):
    """A small demo scene in COLMAP's format: 24 pictures of 72x54."""
    folder = tmp_path_factory.mktemp("scenes") / "demo"
    command = [sys.executable, str(ROOT / "scripts" / "make_demo_scene.py"), str(folder), "--views", "24", "--width", "72", "--height", "54", "--points", "600"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def advance(trainer, steps):
    """Trains as the loop does, without its schedule; what the last step told, a StepNumbers."""
    from nerf.step import StepNumbers

    with trainer.clock.running():
        for _ in range(steps):
            trainer.advance()
            if trainer.step.steps % 16 == 0:
                trainer.follow()
    return StepNumbers(*trainer.step.numbers.tolist())


@contextlib.contextmanager
def no_host_waits():
    """Makes it an error that the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def gpu():
    """The device, if the fused fields run there."""
    import fusedfield

    if not fusedfield.available("cuda" if torch.cuda.is_available() else "cpu"):
        pytest.skip("no GPU of compute capability 8.0 or later")
    return torch.device("cuda")


@pytest.fixture
def make_trainer(demo_scene, tmp_path):
    """A function: flags -> a Trainer of the demo scene, small enough for a CPU; `scene`, `folder`, `device` and `preset` can be given."""
    from nerf.options import parse_options, resolve
    from nerf.scene import load_scene
    from nerf.training import Trainer

    def make(*flags, scene=demo_scene, folder=tmp_path / "run", device="cpu", preset="-O"):
        small = [] if device == "cuda" else ["--num_points", "4096", "--log2_table_size", "13"]
        grid = [] if device == "cuda" else ["--grid_size", "32"]
        model = ["-O", "--max_steps", "128", "--bound", "2", *grid] if preset == "-O" else [preset]
        argv = [str(scene), *model, "--workspace", str(folder), *small, *flags]
        options = resolve(parse_options(argv), torch.device(device))
        folder.mkdir(exist_ok=True)
        return Trainer(load_scene(options), options, torch.device(device), folder)

    return make


@pytest.fixture
def served():
    """A function: flags -> (toy trainer, viewer), closed at the end."""
    pytest.importorskip("viser", reason="viser is not installed")
    from nerf.viewer import Viewer
    from viewer_page import ToyTrainer

    with contextlib.ExitStack() as stack:

        def start(*flags):
            trainer = ToyTrainer(*flags)
            viewer = Viewer(trainer)
            stack.callback(viewer.close)
            return trainer, viewer

        yield start
