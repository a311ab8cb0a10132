"""Checkpoints: whole or absent after any kill, plain contents, and one sentence for each that cannot be used."""

import collections
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nerf.checkpoint import (
    BEST,
    check_signature,
    checkpoint_folder,
    find_checkpoint,
    later_checkpoints,
    load_checkpoint,
    prune,
    save_checkpoint,
    step_name,
)
from nerf.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def workspace(tmp_path):
    """A workspace whose steps 10, 20 and 30 are saved."""
    for step in (10, 20, 30):
        save_checkpoint(checkpoint_folder(tmp_path), step_name(step), {"step": step, "weights": torch.full((4,), float(step))})
    return tmp_path


def truncate(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def test_a_training_state_comes_back_exactly(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 1))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5**step)
    model(torch.rand(7, 3)).sum().backward()
    optimiser.step()
    schedule.step()
    generator = torch.Generator().manual_seed(5)
    state = {
        "step": 1,
        "tau": 1.25,
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "generator": generator.get_state(),
        "half": torch.ones(2, dtype=torch.float16),
        "signature": {"name": "ngp", "sizes": [16, 2], "contract": False, "bound": None},
    }
    back = load_checkpoint(save_checkpoint(tmp_path, step_name(1), state), "cpu")
    assert {name: back[name] for name in ("step", "tau", "signature")} == {name: state[name] for name in ("step", "tau", "signature")}
    assert all(torch.equal(back["model"][name], value) for name, value in model.state_dict().items())
    assert back["half"].dtype == torch.float16
    twin = torch.optim.Adam(model.parameters())
    twin.load_state_dict(back["optimiser"])
    assert torch.equal(twin.state_dict()["state"][0]["exp_avg"], optimiser.state_dict()["state"][0]["exp_avg"])
    torch.optim.lr_scheduler.LambdaLR(twin, lambda step: 0.5**step).load_state_dict(back["schedule"])
    assert torch.equal(torch.rand(3, generator=torch.Generator().manual_seed(5)), torch.rand(3, generator=generator))
    restored = torch.Generator()
    restored.set_state(back["generator"])
    assert torch.equal(restored.get_state(), state["generator"])


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.float64(1.0), "float64"),
        (np.zeros(2), "ndarray"),
        ({1, 2}, "set"),
        (Path("x"), "PosixPath"),
        (torch.nn.ReLU(), "ReLU"),
        (collections.Counter(), "Counter"),
        (torch.float16, "dtype"),
    ],
)
def test_what_is_not_plain_is_refused_by_name(tmp_path, value, kind):
    with pytest.raises(TypeError, match=rf"state\['a'\]\[1\]\['b'\] is of type {kind}"):
        save_checkpoint(tmp_path, "x.pth", {"a": [0, {"b": value}]})
    assert not list(tmp_path.iterdir())


def test_keys_are_plain_too(tmp_path):
    with pytest.raises(TypeError, match=r"state\['a'\] has the key \(1, 2\) of type tuple"):
        save_checkpoint(tmp_path, "x.pth", {"a": {(1, 2): 0}})


@pytest.mark.parametrize("part", ["model", "field"])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_leave_no_trace_in_the_names(tmp_path, prefix, part):
    model = torch.nn.Linear(2, 2)
    wrapped = {prefix + name: value for name, value in model.state_dict().items()}
    back = load_checkpoint(save_checkpoint(tmp_path, "x.pth", {part: wrapped}), "cpu")
    assert list(back[part]) == ["weight", "bias"]


def test_a_compiled_submodule_leaves_no_trace_either(tmp_path):
    path = save_checkpoint(tmp_path, "x.pth", {"model": {"field._orig_mod.grid": torch.ones(1), "module_list.0": torch.ones(1)}})
    assert list(load_checkpoint(path, "cpu")["model"]) == ["field.grid", "module_list.0"]


def test_prune_keeps_the_newest_and_the_best(workspace):
    folder = checkpoint_folder(workspace)
    save_checkpoint(folder, BEST, {"step": 10})
    save_checkpoint(folder, step_name(123456789), {"step": 123456789})
    (folder / "step_notes.txt").write_text("mine")
    prune(folder, keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["best.pth", "step_00000030.pth", "step_123456789.pth", "step_notes.txt"]


def test_later_checkpoints_are_those_after_the_step(workspace):
    folder = checkpoint_folder(workspace)
    save_checkpoint(folder, BEST, {"step": 10})
    assert {path.name for path in later_checkpoints(folder, 10)} == {step_name(20), step_name(30)}
    assert later_checkpoints(folder, 30) == []


def test_latest_is_the_highest_number_not_the_last_name(workspace):
    save_checkpoint(checkpoint_folder(workspace), step_name(100_000_000), {"step": 100_000_000})
    assert find_checkpoint(workspace, "latest").name == "step_100000000.pth"


def test_a_broken_newest_falls_back_with_a_note(workspace):
    truncate(checkpoint_folder(workspace) / step_name(30))
    (checkpoint_folder(workspace) / step_name(40)).write_bytes(b"")
    notes = []
    assert find_checkpoint(workspace, "latest", notes.append).name == step_name(20)
    assert [step_name(40) in notes[0], step_name(30) in notes[1], len(notes)] == [True, True, 2]


def test_all_broken_is_not_a_silent_fresh_start(workspace):
    for path in checkpoint_folder(workspace).iterdir():
        truncate(path)
    with pytest.raises(UserError, match="none of the checkpoints .* can be read, the newest because: .*step_.*pth cannot be read .*--ckpt scratch"):
        find_checkpoint(workspace, "latest", lambda _: None)


def test_best_and_its_fallback(workspace):
    notes = []
    assert find_checkpoint(workspace, "best", notes.append).name == step_name(30)
    assert len(notes) == 1 and "best.pth is absent" in notes[0]
    best = save_checkpoint(checkpoint_folder(workspace), BEST, {"step": 20})
    assert find_checkpoint(workspace, "best", notes.append) == best and len(notes) == 1
    truncate(best)
    assert find_checkpoint(workspace, "best", notes.append).name == step_name(30)
    assert "best.pth cannot be read" in notes[1]


def test_scratch_and_an_empty_workspace_start_anew(workspace, tmp_path_factory):
    assert find_checkpoint(workspace, "scratch") is None
    empty = tmp_path_factory.mktemp("empty")
    assert find_checkpoint(empty, "latest") is None
    assert find_checkpoint(empty, "best", lambda _: None) is None


def test_a_named_file_must_exist(workspace):
    path = checkpoint_folder(workspace) / step_name(10)
    assert find_checkpoint(workspace, str(path)) == path
    for absent in ("nowhere.pth", str(workspace)):
        with pytest.raises(UserError, match=f"--ckpt {absent} is no file"):
            find_checkpoint(workspace, absent)


def flip_middle_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:-1], lambda b: b[: len(b) // 3], lambda b: b"text", lambda b: b[::-1], flip_middle_bit]
)
def test_damage_is_one_sentence(tmp_path, damage):
    path = save_checkpoint(tmp_path, "x.pth", {"weights": torch.rand(10_000)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as caught:
        load_checkpoint(path, "cpu")
    message = str(caught.value)
    assert message.startswith(f"checkpoint {path} cannot be read (") and "--ckpt" in message and "\n" not in message


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({"model": Bomb()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(tmp_path / "x.pth", "cpu")
    assert not (tmp_path / "exploded").exists()


def test_a_strangers_checkpoint_is_not_ours(tmp_path):
    torch.save({"model": {}, "epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="is no checkpoint of this project"):
        load_checkpoint(tmp_path / "x.pth", "cpu")


def test_signatures():
    own = {"family": "ngp", "log2_table_size": 19, "contract": False, "num_steps": (256, 96, 48)}
    check_signature({**own, "num_steps": [256, 96, 48]}, own, "a.pth")
    for change, said in [
        ({"log2_table_size": 15}, "log2_table_size is 15 there and 19 here; give --log2_table_size 15, or --ckpt scratch"),
        ({"contract": True, "num_steps": [1]}, "contract is on there and off here; give --contract, or"),
        ({"num_steps": [64, 32, 16]}, "give --num_steps 64 32 16, or"),
        ({"family": "merf"}, "family is merf there and ngp here; give --ckpt scratch"),
        ({"levels": 16}, "levels is 16 there and absent here; give --ckpt scratch"),
    ]:
        with pytest.raises(UserError) as caught:
            check_signature({**own, **change}, own, "a.pth")
        assert said in str(caught.value) and str(caught.value).startswith("checkpoint a.pth is of another network or a scene placed otherwise: ")


def test_a_failed_save_leaves_the_old_one_and_no_rubbish(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path, "x.pth", {"step": 1})

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full_disk)
        with pytest.raises(UserError, match=r"x.pth cannot be written \(No space left on device\); free some space"):
            save_checkpoint(tmp_path, "x.pth", {"step": 2})
    assert load_checkpoint(path, "cpu") == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pth"]


def test_a_file_size_limit_is_one_sentence(tmp_path):
    code = f"""
import resource, torch
from nerf.checkpoint import save_checkpoint
from nerf.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint({str(tmp_path)!r}, "x.pth", {{"weights": torch.zeros(100_000)}})
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True)
    assert "x.pth cannot be written (" in done.stdout and len(done.stdout.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_leftovers_of_killed_saves_are_removed(tmp_path):
    (tmp_path / ".step_00000009.123.partial.pth").write_bytes(b"half")
    save_checkpoint(tmp_path, step_name(10), {"step": 10})
    assert [path.name for path in tmp_path.iterdir()] == [step_name(10)]


KILLS = 40
KILLER = """
import json, os, random, signal, sys, time
import torch
from nerf.checkpoint import checkpoint_folder, find_checkpoint, load_checkpoint, prune, save_checkpoint, step_name

workspace, kills = sys.argv[1], int(sys.argv[2])
folder, dice, torch_threads = checkpoint_folder(workspace), random.Random(0), torch.set_num_threads(1)

def save_forever(step):
    while True:
        step += 1
        save_checkpoint(folder, step_name(step), {"step": step, "weights": torch.full((200_000,), float(step))})
        os.write(pipe_in, step.to_bytes(4, "little"))
        prune(folder)

report = {"found": [], "notes": [], "interrupted": 0}
step = 0
for _ in range(kills):
    pipe_out, pipe_in = os.pipe()
    child = os.fork()
    if child == 0:
        save_forever(step)
    time.sleep(dice.uniform(0.01, 0.25))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(pipe_in)
    with os.fdopen(pipe_out, "rb") as pipe:
        said = pipe.read()
    promised = int.from_bytes(said[-4:], "little") if said else step
    report["interrupted"] += any(".partial" in path.name for path in folder.glob(".*")) if folder.exists() else 0
    path = find_checkpoint(workspace, "latest", report["notes"].append)
    if path is None:
        assert promised == 0
        continue
    state = load_checkpoint(path, "cpu")
    assert torch.equal(state["weights"], torch.full((200_000,), float(state["step"])))
    assert state["step"] >= promised, (state["step"], promised)
    step = state["step"]
    report["found"].append(step)
print(json.dumps(report))
"""


def test_sigkill_in_the_middle_of_saves(tmp_path):
    command = [sys.executable, "-c", KILLER, str(tmp_path), str(KILLS)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["found"]) >= KILLS - 5 and report["found"] == sorted(report["found"])
    assert report["notes"] == [], "a half-written checkpoint got a checkpoint's name"
    assert report["interrupted"] >= 5, "too few kills hit a save for the test to mean anything"
    save_checkpoint(checkpoint_folder(tmp_path), BEST, {"step": 0})
    assert not list(checkpoint_folder(tmp_path).glob(".*"))
