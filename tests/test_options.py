"""The command line: presets, negations, checks, and the texts made from the fields."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nerf.errors import UserError
from nerf.option_text import flag_fields
from nerf.options import (
    PRESETS,
    Options,
    options_table,
    parse_options,
    prepare_workspace,
    resolve,
    save_options,
)

ROOT = Path(__file__).resolve().parent.parent
SWITCHES = [entry.name for entry in flag_fields(Options) if entry.type is bool and entry.name not in PRESETS]


def parse(line):
    return parse_options(line.split())


def help_lines(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_options(["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_defaults_of_the_authors():
    options = parse("scene")
    assert (options.path, options.workspace, options.seed, options.ckpt) == ("scene", "workspace", 0, "latest")
    assert (options.lr, options.max_training_time, options.val_checkpoint, options.iters) == (4e-3, 4.0, 120.0, 2_000_000_000)
    assert (options.dt_gamma, options.T_thresh, options.num_steps, options.lambda_distort) == (1 / 256, 1e-4, (256, 96, 48), 0.0)
    assert {name for name in SWITCHES if getattr(options, name)} == {"graph"}
    assert options.given == ("path",) and options.implied == ()


def test_each_default_passes_its_own_checks_and_has_its_own_type():
    options = parse("scene")
    for entry in flag_fields(Options):
        value = getattr(options, entry.name)
        if entry.type in (bool, int, float, str):
            assert type(value) is entry.type, entry.name
        if "choices" in entry.metadata:
            assert value in entry.metadata["choices"], entry.name


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse("scene").num_rays = 1


def test_preset_O():
    options = parse("scene -O")
    on = {name for name in SWITCHES if getattr(options, name)} - {"graph"}
    assert on == {"fp16", "preload", "cuda_ray", "mark_untrained", "adaptive_num_rays", "random_image_batch"} == set(options.implied) - {"background"}
    assert options.bound is None and options.background == "random"
    assert parse("scene -O --background white").background == "white"


def test_preset_O2():
    options = parse("scene -O2")
    on = {name for name in SWITCHES if getattr(options, name)} - {"graph"}
    assert on == {"fp16", "preload", "contract", "adaptive_num_rays", "random_image_batch"}
    assert options.bound == 128 and "bound" in options.implied and options.background == "last_sample"
    assert parse("scene -O2 --bound 4").bound == 4


@pytest.mark.parametrize("line", ["scene -O --no-preload", "scene --no-preload -O"])
def test_a_negation_beats_the_preset_wherever_it_stands(line):
    options = parse(line)
    assert not options.preload and options.fp16
    assert "preload" not in options.implied


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_has_a_negation(name):
    companions = {"test_no_video": " --test", "test_no_mesh": " --test", "mark_untrained": " --cuda_ray"}.get(name, "")
    assert getattr(parse(f"scene --{name}{companions}"), name) is True
    assert getattr(parse(f"scene --{name}{companions} --no-{name}"), name) is False


def test_contraction_takes_back_the_implied_mark_untrained():
    options = parse("scene -O --contract")
    assert options.contract and not options.mark_untrained and "mark_untrained" not in options.implied
    assert parse("scene -O --no-contract").mark_untrained


def test_merf_with_a_preset_centres_on_the_cameras():
    options = parse("scene -O2 --backbone merf")
    assert options.enable_cam_center and "enable_cam_center" in options.implied
    assert parse("scene -O --backbone merf").enable_cam_center
    for line in ("scene --backbone merf", "scene -O2 --backbone merf --no-enable_cam_center", "scene -O2"):
        assert not parse(line).enable_cam_center


@pytest.mark.parametrize("value", ["-1", "-0.5", "-1e-3", "-.5e+1"])
def test_negative_numbers_are_values(value):
    assert parse(f"scene --offset {value} 0 2").offset == (float(value), 0.0, 2.0)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("-O -O2", ["-O", "-O2"]),
        ("--hsm_floor 0.1", ["--hsm_floor", "--hsm"]),
        ("--no-hsm --hsm_draw top", ["--hsm_draw", "--hsm"]),
        ("--hsm --hsm_floor 0.6", ["--hsm_floor 0.6", "--hsm_cap 0.5"]),
        ("--hsm --hsm_fraction 0.2", ["--hsm_fraction", "--hsm_budget tau"]),
        ("--test --ckpt scratch", ["--test", "--ckpt scratch"]),
        ("--test_no_video", ["--test_no_video", "--test"]),
        ("--mark_untrained --contract", ["--mark_untrained", "--contract"]),
        ("-O --mark_untrained --contract", ["--mark_untrained", "--contract"]),
        ("-O2 --mark_untrained", ["--mark_untrained", "-O2"]),
        ("-O2 --no-contract --mark_untrained", ["--mark_untrained", "-O2"]),
        ("-O2 --grid_size 64", ["--grid_size", "-O2"]),
        ("--num_rays 100", ["--num_rays", "-O"]),
        ("-O --max_ray_batch 5", ["--max_ray_batch", "-O"]),
        ("-O --background last_sample", ["--background last_sample", "-O"]),
        ("--hsm --hsm_draw top --hsm_alpha 1", ["--hsm_draw top", "--hsm_alpha"]),
        ("--hsm --hsm_budget fixed --hsm_fraction 0.8", ["--hsm_fraction 0.8", "--hsm_cap 0.5"]),
        ("--hsm --hsm_budget fixed --hsm_fraction 0.01", ["--hsm_fraction 0.01", "--hsm_floor 0.05"]),
        ("--eval_cnt 3 --val_checkpoint 60", ["--eval_cnt", "--val_checkpoint"]),
        ("--pose_lr 1e-3", ["--pose_lr", "--refine_poses"]),
        ("--export_points 100", ["--export_points", "--test"]),
        ("--test_no_mesh", ["--test_no_mesh", "--test"]),
        ("--test --test_no_mesh --mcubes_reso 64", ["--test_no_mesh", "--mcubes_reso"]),
    ],
)
def test_contradictions_name_both_flags(line, named):
    with pytest.raises(UserError) as caught:
        parse(f"scene {line}")
    message = str(caught.value)
    assert all(name in message for name in named), message
    assert "\n" not in message and message.endswith(".")


@pytest.mark.parametrize(
    "line",
    [
        "--gui --test",
        "--eval_cnt 0 --val_checkpoint 60",
        "--hsm --hsm_budget fixed --hsm_fraction 0.2",
        "-O2 --no-mark_untrained --no-adaptive_num_rays",
        "-O2 --test --density_thresh 5",
        "--cuda_ray --background random --grid_size 64",
        "--hsm --hsm_draw top --hsm_alpha 0",
        "--hsm --hsm_budget fixed --hsm_fraction 0.8 --hsm_cap 1",
        "--test --ckpt best --test_no_video",
        "--scale 0.33",
    ],
)
def test_what_looks_like_a_contradiction_and_is_none(line):
    parse(f"scene {line}")


@pytest.mark.parametrize(
    "flag_and_value",
    [
        "--lr 0", "--lr nan", "--lr inf", "--seed -1", "--iters 0", "--num_rays 0", "--num_points 1", "--downscale 0",
        "--bound 0", "--scale 0", "--scale -2", "--offset 0 nan 0", "--T_thresh 1", "--grid_size 100", "--grid_size 4096",
        "--dt_gamma -0.1", "--max_training_time 0", "--val_checkpoint 0", "--eval_cnt -1", "--save_cnt 0", "--ema_decay 1",
        "--log2_table_size 40", "--num_steps 256 0 48", "--port 0", "--fovy 180", "--lambda_tv -1", "--min_near 0",
        "--video_frames 0", "--hsm --hsm_alpha 2", "--hsm --hsm_floor 0", "--hsm --hsm_cap 1.5",
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_named(flag_and_value):
    flag, value = flag_and_value.removeprefix("--hsm ").split(maxsplit=1)
    with pytest.raises(UserError) as caught:
        parse(f"scene {flag_and_value}")
    message = str(caught.value)
    assert message.startswith(f"{flag} {value} is ") and "; give " in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("scene --hms", "did you mean --hsm?"),
        ("scene --num_ray=100", "did you mean --num_rays?"),
        ("--no_preload scene", "did you mean --no-preload?"),
        ("scene --zzzzqq", "--help lists the flags"),
        ("scene -o", "unrecognized arguments: -o"),
        ("scene --lr fast", "invalid float value: 'fast'"),
        ("scene --background blue", "invalid choice: 'blue'"),
        ("scene --num_steps 1 2", "expected 3 arguments"),
        ("-O", "required: path"),
        ("scene other", "unrecognized arguments: other"),
    ],
)
def test_what_argparse_refuses(line, said, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(line)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_no_abbreviations():
    with pytest.raises(SystemExit):
        parse("scene --work elsewhere")


def test_device_cuda_without_one(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda finds no CUDA device"):
        parse("scene --device cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert parse("scene --device cuda").device == "cuda"


def test_help_shows_every_flag_on_a_line_of_its_own_with_its_default(capsys):
    lines = help_lines(capsys)
    for entry in flag_fields(Options):
        if entry.name == "path" or entry.name in PRESETS:
            continue
        mine = [line for line in lines if line.strip().startswith((f"--{entry.name} ", f"--[no-]{entry.name} "))]
        assert len(mine) == 1, entry.name
        assert mine[0].endswith("]") and entry.metadata["help"] in mine[0]
    headings = [line for line in lines if line and not line.startswith(" ") and line.endswith(":")]
    assert len(headings) == 10
    assert max(map(len, lines)) <= 155


def test_help_says_what_the_presets_imply(capsys):
    text = "\n".join(help_lines(capsys))
    assert "[off; on with -O; on with -O2]" in text
    assert "[from the scene; 128 with -O2]" in text
    assert "[128; 64 on a CPU]" in text


def test_resolve_settles_sizes_for_the_device_and_leaves_what_was_given():
    options = parse("scene -O")
    on_gpu, on_cpu = resolve(options, "cuda:0"), resolve(options, "cpu")
    assert (on_gpu.grid_size, on_gpu.num_points, on_gpu.max_steps, on_gpu.log2_table_size) == (128, 2**18, 1024, 19)
    assert (on_cpu.grid_size, on_cpu.num_points, on_cpu.max_steps, on_cpu.log2_table_size) == (64, 2**14, 256, 15)
    assert on_cpu.bound is None and on_cpu.implied == options.implied
    assert resolve(parse("scene -O --grid_size 32"), "cpu").grid_size == 32


def test_saved_options_are_plain_whole_and_in_order(tmp_path):
    options = parse("scene -O --hsm --offset 1 2 3")
    save_options(options, tmp_path)
    saved = json.loads((tmp_path / "options.json").read_text())
    assert list(saved) == [entry.name for entry in flag_fields(Options)]
    assert saved["offset"] == [1.0, 2.0, 3.0] and saved["hsm"] is True and saved["bound"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["options.json"]


def test_saved_options_name_the_scene_alike_however_it_was_given(tmp_path, monkeypatch):
    (tmp_path / "data" / "fox").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("fox", "./fox/", "../data/fox", tmp_path / "data" / "fox", tmp_path / "link" / "fox", "~/data/fox"):
        save_options(parse(f"{path} -O"), tmp_path)
        assert json.loads((tmp_path / "options.json").read_text())["path"] == str((tmp_path / "data" / "fox").resolve())


def test_table_marks_what_was_given_and_what_is_implied():
    table = options_table(parse("scene -O --hsm --lr 0.01"))
    assert "+lr " in table and "0.01" in table and "+hsm " in table
    assert "*cuda_ray" in table and "* implied by -O" in table
    assert all(f"{entry.name} " in table or table.endswith(entry.name) for entry in flag_fields(Options))
    assert "\x1b" not in table
    assert "implied" not in options_table(parse("scene"))


def test_table_is_coloured_and_fits_on_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setenv("TERM", "xterm")
    table = options_table(parse("scene -O"))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", table).splitlines()
    assert "\x1b[" in table and max(map(len, lines)) <= 90
    assert any("*cuda_ray" in line for line in lines)


def test_workspace_is_made(tmp_path):
    folder = prepare_workspace(parse(f"scene --workspace {tmp_path}/a/b"))
    assert folder.is_dir() and not list(folder.iterdir())


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/workspace"])
def test_workspace_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="^--workspace .* cannot be written .*; choose another folder.$"):
        prepare_workspace(Options("scene", workspace=str(tmp_path / place)))


def test_parsing_does_not_wait_for_torch():
    code = "import sys; from nerf.options import parse_options; parse_options(['scene', '-O']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
