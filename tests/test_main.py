"""The command line: bad input is one sentence and a non-zero exit; a killed or stopped run goes on from its last checkpoint."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import main
from conftest import DEVICES, ROOT
from nerf import checkpoint
from nerf.memory import memory_that_ran_out

SMALL = ["-O", "--device", "cpu", "--num_points", "1024", "--grid_size", "16", "--log2_table_size", "11", "--max_steps", "64", "--bound", "2"]


def run(monkeypatch, capsys, *argv):
    """Runs main.py in this process: (exit code, standard output, standard error)."""
    monkeypatch.setattr(sys, "argv", ["main.py", *map(str, argv)])
    code = main.main()
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def fails(monkeypatch, capsys, tmp_path):
    """A function: argv -> the one sentence on standard error, after checking that the exit code is 1."""
    monkeypatch.chdir(tmp_path)  # the default workspace lies in the current folder

    def check(*argv):
        code, _, error = run(monkeypatch, capsys, *argv)
        assert code == 1 and error.startswith("main.py: ") and error.count("\n") == 1 and "Traceback" not in error
        return error

    return check


@pytest.fixture
def broken(demo_scene, tmp_path):
    """A copy of the demo scene to break."""
    return shutil.copytree(demo_scene, tmp_path / "broken")


def test_scene_folder(fails, tmp_path, broken):
    assert "nowhere" in fails(tmp_path / "nowhere", *SMALL)
    shutil.rmtree(broken / "sparse")
    assert "colmap2nerf.py --images" in fails(broken, *SMALL)


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_truncated_and_garbage_model(fails, broken, name):
    file = broken / "sparse" / "0" / name
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert name in fails(broken, *SMALL)
    file.write_bytes(np.random.default_rng(0).bytes(len(whole)))
    assert name in fails(broken, *SMALL)


def test_camera_model_that_is_not_supported(fails, broken):
    file = broken / "sparse" / "0" / "cameras.bin"
    content = bytearray(file.read_bytes())
    content[12:16] = (10).to_bytes(4, "little")  # THIN_PRISM_FISHEYE
    file.write_bytes(content)
    error = fails(broken, *SMALL)
    assert "THIN_PRISM_FISHEYE" in error and "OPENCV" in error


def test_photos(fails, broken):
    photo = sorted((broken / "images").iterdir())[3]
    photo.write_bytes(photo.read_bytes()[:200])
    assert photo.name in fails(broken, *SMALL)
    shutil.rmtree(broken / "images")
    assert "images" in fails(broken, *SMALL)


def test_poses_that_are_not_numbers(fails, broken):
    file = broken / "sparse" / "0" / "images.bin"
    content = bytearray(file.read_bytes())
    content[12:20] = np.float64(np.nan).tobytes()
    file.write_bytes(content)
    assert "NaN" in fails(broken, *SMALL)


def test_workspace_that_cannot_be_written(fails, demo_scene, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert str(tmp_path / "file") in fails(demo_scene, *SMALL, "--workspace", tmp_path / "file" / "run")


def test_memory_that_runs_out(demo_scene, tmp_path):
    limited = f"ulimit -v {8 * 2**20} && exec {sys.executable} {ROOT / 'main.py'} {demo_scene} {' '.join(SMALL)} --workspace {tmp_path} --num_points {2**26}"
    done = subprocess.run(["bash", "-c", limited], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("main.py: the memory of this machine ran out") and "--num_points" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."), "the GPU"),
        (MemoryError(), "this machine"),
        (RuntimeError("size mismatch"), None),
    ],
)
def test_what_says_that_memory_ran_out(error, memory):
    assert memory_that_ran_out(error) == memory


def test_flags_that_contradict_each_other(fails, demo_scene):
    assert "-O2" in fails(demo_scene, "-O", "-O2")
    assert "--hsm_floor" in fails(demo_scene, *SMALL, "--hsm", "--hsm_floor", "0.6", "--hsm_cap", "0.5")
    assert "--hsm" in fails(demo_scene, *SMALL, "--hsm_alpha", "1")
    assert "scratch" in fails(demo_scene, *SMALL, "--test", "--ckpt", "scratch")


def test_nerfacto_trains_and_tests(monkeypatch, capsys, demo_scene, tmp_path):
    nerfacto = ["-O2", "--backbone", "merf", "--hsm", "--device", "cpu", "--num_points", "1024", "--num_steps", "32", "16", "8", "--log2_table_size", "11"]
    code, said, _ = run(monkeypatch, capsys, demo_scene, *nerfacto, "--workspace", tmp_path / "run", "--iters", "20")
    assert code == 0 and "held-out PSNR" in said
    code, said, _ = run(monkeypatch, capsys, demo_scene, *nerfacto, "--workspace", tmp_path / "run", "--test", "--test_no_video")
    assert code == 0 and "step 20" in said


def test_flags_of_proposal_networks_need_them(fails, demo_scene):
    assert "--lambda_distort" in fails(demo_scene, *SMALL, "--lambda_distort", "0.01")
    assert "appearance" in fails(demo_scene, *SMALL, "--backbone", "merf", "--appearance", "4")


def test_checkpoints_that_do_not_fit(fails, monkeypatch, capsys, demo_scene, tmp_path):
    argv = [demo_scene, *SMALL, "--workspace", tmp_path / "run"]
    assert "no checkpoint" in fails(*argv, "--test")
    assert run(monkeypatch, capsys, *argv, "--iters", "8")[0] == 0
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    error = fails(*argv, "--log2_table_size", "12", "--iters", "16")
    assert "another network" in error and "--log2_table_size 11" in error
    assert "give --no-enable_cam_center, or" in fails(*argv, "--enable_cam_center", "--iters", "16")
    assert "give --offset 0 0 0, or" in fails(*argv, "--offset", "0.1", "0", "0", "--iters", "16")
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before
    (tmp_path / "not.pth").write_bytes(b"no checkpoint")
    assert "not.pth" in fails(*argv, "--ckpt", tmp_path / "not.pth")


def same_numbers(one, other):
    """Whether two evaluations say the same of every view, but for the time it took."""
    told = [[{key: value for key, value in image.items() if key != "seconds"} for image in result["images"]] for result in (one, other)]
    return told[0] == told[1] and all(one[key] == other[key] for key in ("psnr", "ssim", "lpips", "protocol", "count"))


@pytest.mark.parametrize("device", DEVICES)
def test_test_gives_the_numbers_of_the_end_of_training(monkeypatch, capsys, demo_scene, tmp_path, device):
    """Also where a scene has other photos to test on than to validate on."""
    model = [flag for flag in SMALL if flag not in ("--device", "cpu")]
    scene = separate_test_photos(demo_scene, tmp_path / "scene")
    argv = [scene, *model, "--device", device, "--hsm", "--workspace", tmp_path / "run"]
    assert run(monkeypatch, capsys, *argv, "--iters", "24")[0] == 0
    trained = json.loads((tmp_path / "run" / "results" / "metrics.json").read_text())
    assert run(monkeypatch, capsys, *argv, "--test", "--test_no_video", "--test_no_mesh")[0] == 0
    tested = json.loads((tmp_path / "run" / "results" / "metrics.json").read_text())
    assert [image["name"] for image in trained["images"]] == [f"images/{name}" for name in TESTED] and same_numbers(trained, tested)
    assert {name: tested[name] for name in ("step", "downscale", "train_split", "data_format")} == {"step": 24, "downscale": 1, "train_split": "train", "data_format": "auto"}
    (line,) = [json.loads(text) for text in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    (validated,) = (tmp_path / "run" / "validation").iterdir()
    assert line["psnr"] == json.loads((validated / "metrics.json").read_text())["psnr"] != trained["psnr"]


TESTED = ["view_002.png", "view_003.png"]


def separate_test_photos(demo, folder):
    """The demo scene as a transforms.json in which some photos are for testing and one other for validation."""
    from nerf.options import parse_options
    from nerf.scene import load_scene

    scene = load_scene(parse_options([str(demo), *SMALL]))
    names = [Path(name).name for name in scene.names]
    frames = [{"file_path": f"images/{name}", "transform_matrix": [*pose.tolist(), [0, 0, 0, 1]]} for name, pose in zip(names, scene.cameras.poses, strict=True)]
    fx, fy, cx, cy = scene.cameras.intrinsics[0].tolist()
    width, height = scene.cameras.sizes[0].tolist()
    parts = {"test": TESTED, "val": ["view_001.png"]}
    parts["train"] = [name for name in names if name not in parts["test"] + parts["val"]]
    splits = {f"{part}_filenames": [f"images/{name}" for name in chosen] for part, chosen in parts.items()}
    folder.mkdir()
    (folder / "images").symlink_to(demo / "images")
    (folder / "transforms.json").write_text(json.dumps({"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": width, "h": height, **splits, "frames": frames}))
    return folder


def test_the_video_follows_a_file(monkeypatch, capsys, fails, demo_scene, tmp_path):
    argv = [demo_scene, *SMALL, "--workspace", tmp_path / "run"]
    assert run(monkeypatch, capsys, *argv, "--iters", "8")[0] == 0
    assert run(monkeypatch, capsys, *argv, "--test", "--test_no_mesh", "--video_frames", "4", "--camera_traj", "ellipse")[0] == 0
    path = json.loads((tmp_path / "run" / "results" / "camera_path.json").read_text())
    path |= {"camera_path": path["camera_path"][1:], "render_width": 41, "render_height": 31, "fps": 10}
    (tmp_path / "path.json").write_text(json.dumps(path))
    assert run(monkeypatch, capsys, *argv, "--test", "--test_no_mesh", "--camera_path", tmp_path / "path.json")[0] == 0
    assert iio.imread(tmp_path / "run" / "results" / "rgb.mp4").shape == (3, 32, 42, 3)
    assert "nowhere.json" in fails(*argv, "--test", "--test_no_mesh", "--camera_path", tmp_path / "nowhere.json")
    assert "--video_frames" in fails(*argv, "--test", "--test_no_mesh", "--camera_path", tmp_path / "path.json", "--video_frames", "5")


def test_train_resume_test_and_start_again(monkeypatch, capsys, demo_scene, tmp_path):
    folder = tmp_path / "run"
    argv = [demo_scene, *SMALL, "--hsm", "--workspace", folder]
    code, said, _ = run(monkeypatch, capsys, *argv, "--iters", "16")
    assert code == 0 and "starting from scratch" in said
    options = json.loads((folder / "options.json").read_text())
    assert options["hsm"] is True and options["num_points"] == 1024
    code, said, _ = run(monkeypatch, capsys, *argv, "--iters", "32")
    assert code == 0 and "Resuming from" in said and "step 16" in said
    assert [json.loads(line)["step"] for line in (folder / "history.jsonl").read_text().splitlines()] == [16, 32]
    assert run(monkeypatch, capsys, *argv, "--iters", "32")[0] == 0  # a finished run measures again
    trained = json.loads((folder / "results" / "metrics.json").read_text())
    code, said, _ = run(monkeypatch, capsys, *argv, "--test", "--video_frames", "3")
    tested = json.loads((folder / "results" / "metrics.json").read_text())
    assert code == 0 and same_numbers(tested, trained)
    assert {path.name for path in (folder / "results").glob("*.mp4")} == {"rgb.mp4", "depth.mp4", "opacity.mp4"}
    assert len(iio.imread(folder / "results" / "rgb.mp4")) == 3
    assert len(list((folder / "results").glob("*_rgb.png"))) == tested["count"] == 3
    code, said, _ = run(monkeypatch, capsys, *argv, "--iters", "8", "--ckpt", "scratch")
    assert code == 0 and "previous_1" in said
    assert (folder / "previous_1" / "checkpoints" / "step_00000032.pth").exists()
    assert checkpoint.find_checkpoint(folder, "latest").name == "step_00000008.pth"


def start(scene, folder, *flags):
    """A training process with a checkpoint every few steps."""
    command = [sys.executable, str(ROOT / "main.py"), str(scene), *SMALL, "--workspace", str(folder), "--iters", "4000", "--save_cnt", "400", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def saved_steps(folder):
    return sorted(int(path.stem.split("_")[1]) for path in (folder / "checkpoints").glob("step_*.pth"))


def wait_for_step(folder, step, process):
    until = time.monotonic() + 120
    while not any(saved >= step for saved in saved_steps(folder)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until, "no checkpoint in time"
        time.sleep(0.01)


def test_sigkill_loses_at_most_the_work_since_the_last_checkpoint(demo_scene, tmp_path):
    folder, reached = tmp_path / "run", 0
    for k in range(3):
        process = start(demo_scene, folder, "--hsm")
        wait_for_step(folder, reached + 30, process)
        time.sleep(0.013 * k)  # in a step, or in the middle of a save
        process.send_signal(signal.SIGKILL)
        process.wait()
        path = checkpoint.find_checkpoint(folder, "latest")
        state = checkpoint.load_checkpoint(path, torch.device("cpu"))
        assert state["step"] >= reached + 30
        reached = state["step"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_before_leaving(demo_scene, tmp_path, number):
    process = start(demo_scene, tmp_path / "run", "--save_cnt", "1")
    until = time.monotonic() + 120
    while not (tmp_path / "run" / "scalars.jsonl").exists():  # written from inside the loop
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert f"Stopped by signal {int(number)}" in said and "Traceback" not in said
    assert len(saved_steps(tmp_path / "run")) == 1 and saved_steps(tmp_path / "run")[0] >= 128
