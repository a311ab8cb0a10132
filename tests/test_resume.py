"""What a run that goes on takes from its checkpoint, what from its command line, and which checkpoints it refuses."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import main
from conftest import advance
from nerf import checkpoint, workspace
from nerf.errors import UserError
from nerf.scene_identity import check_scene, scene_state
from nerf.training import hours

SMALL = ["-O", "--device", "cpu", "--num_points", "1024", "--grid_size", "16", "--log2_table_size", "11", "--max_steps", "64", "--bound", "2"]


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def resumed(make_trainer, *flags, **where):
    trainer = make_trainer(*flags, **where)
    trainer.resume(checkpoint.find_checkpoint(trainer.folder, "latest"))
    workspace.go_on_from(trainer.folder, trainer.step.steps)
    return trainer


def a_scene(names=("a.png", "b.png", "c.png"), shift=0.0, train=(0, 1)):
    poses = np.tile(np.eye(4, dtype=np.float32)[:3], (len(names), 1, 1))
    poses[:, 0, 3] = np.arange(len(names)) + shift
    return SimpleNamespace(names=list(names), cameras=SimpleNamespace(poses=poses), train=np.array(train), root=Path("data/a"))


def test_a_checkpoint_belongs_to_its_scene():
    saved = scene_state(a_scene())
    check_scene(saved, a_scene(), "x.pth", by_photo=True)
    check_scene(saved, a_scene(train=(2,)), "x.pth", by_photo=False)
    check_scene(saved, a_scene(("b.png", "c.png"), shift=1.0), "x.pth", by_photo=False)  # one photo fewer, the others where they were
    for scene, said in [
        (a_scene(("d.png", "e.png")), "it knows a.png and others, none of which is in data/a"),
        (a_scene(shift=0.01), "cameras stand elsewhere: that of .*png is off by 0.01; check the scene's folder.* and --data_format"),
        (a_scene(train=(0, 2)), "each of its 2 training photos, and those are not the 2 here; give --train_split"),
    ]:
        with pytest.raises(UserError, match=said):
            check_scene(saved, scene, "x.pth", by_photo=True)


def test_a_scene_may_move(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    scenes = [a_scene([f"{tmp_path}/{folder}/images/{i}.png" for i in range(3)]) for folder in ("here", "there")]
    for scene, folder in zip(scenes, ("here", "there"), strict=True):
        scene.root = tmp_path / folder
    check_scene(scene_state(scenes[0]), scenes[1], "x.pth", by_photo=True)


def test_a_checkpoint_of_a_scene_that_was_turned_is_refused(make_trainer):
    trainer = make_trainer()
    advance(trainer, 1)
    trainer.save()
    other = make_trainer()
    other.scene.cameras.poses[:] = other.scene.cameras.poses[::-1].copy()
    before = [parameter.clone() for parameter in other.model.field.parameters()]
    with pytest.raises(UserError, match="cameras stand elsewhere"):
        other.resume(checkpoint.find_checkpoint(other.folder, "latest"))
    assert all(map(torch.equal, before, other.model.field.parameters()))


@pytest.mark.parametrize("flags", [["--refine_poses"], ["--appearance", "4"]])
def test_what_belongs_to_photos_needs_the_same_ones(make_trainer, flags):
    trainer = make_trainer(*flags)
    trainer.scene.train[:] = trainer.scene.train[::-1].copy()
    advance(trainer, 1)
    trainer.save()
    with pytest.raises(UserError, match="give --train_split as then"):
        resumed(make_trainer, *flags)


def test_a_finished_run_that_is_started_again_measures_and_changes_nothing_else(monkeypatch, demo_scene, tmp_path):
    def started(*flags):
        argv = [str(demo_scene), *SMALL, "--workspace", str(tmp_path), "--iters", "20", "--hsm", *flags]
        monkeypatch.setattr("sys.argv", ["main.py", *argv])
        assert main.main() == 0

    started()
    kept = [tmp_path / "history.jsonl", tmp_path / "options.json", *(tmp_path / "checkpoints").iterdir()]
    before = [path.read_bytes() for path in kept]
    metrics = tmp_path / "results" / "metrics.json"
    psnr = json.loads(metrics.read_text())["psnr"]
    metrics.unlink()
    started("--lr", "0.1")
    assert [path.read_bytes() for path in kept] == before and len(history(tmp_path)) == 1
    assert json.loads(metrics.read_text())["psnr"] == psnr


def test_a_run_whose_last_validation_was_cut_short_makes_up_for_it(make_trainer, tmp_path):
    make_trainer("--iters", "20").train()
    (tmp_path / "run" / "history.jsonl").unlink()
    (tmp_path / "run" / "checkpoints" / "best.pth").unlink()
    assert resumed(make_trainer, "--iters", "20").train() is None
    (line,) = history(tmp_path / "run")
    assert line["step"] == 20 and line["psnr"] is not None and "ms_per_step" not in line
    assert (tmp_path / "run" / "checkpoints" / "best.pth").exists()


def test_a_finished_run_goes_on_in_another_workspace(make_trainer, tmp_path):
    make_trainer("--iters", "20").train()
    elsewhere = make_trainer("--iters", "20", folder=tmp_path / "elsewhere")
    elsewhere.resume(tmp_path / "run" / "checkpoints" / "step_00000020.pth")
    assert elsewhere.train() is None
    assert {path.name for path in (tmp_path / "elsewhere" / "checkpoints").iterdir()} >= {"step_00000020.pth"} and len(history(tmp_path / "elsewhere")) == 1


def test_a_signal_during_the_last_validation_is_told_on(make_trainer):
    """Whatever started this process must see that it was asked to stop, though all is done."""
    trainer = make_trainer("--iters", "16")
    plain = trainer.evaluate

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return plain(*arguments, **options)

    trainer.evaluate = interrupted
    assert trainer.train() == signal.SIGINT and len(history(trainer.folder)) == 1


def test_the_learning_rates_are_those_of_the_command_line(make_trainer):
    trainer = make_trainer("--refine_poses", "--lr_schedule", "exponential", "--iters", "64", "--max_training_time", "1000")
    advance(trainer, 32)
    trainer.save()
    flags = "--refine_poses", "--lr_schedule", "exponential", "--iters", "64", "--max_training_time", "1000", "--lr", "1e-4", "--pose_lr", "1e-5"
    going_on = resumed(make_trainer, *flags)
    for steps in (0, 16):
        advance(going_on, steps) if steps else None
        rate = 0.1 ** ((32 + steps) / 64)
        rates = [group["lr"].item() for group in going_on.step.optimizer.param_groups]
        assert rates == pytest.approx([1e-4 * rate, 1e-4 * rate, 1e-5 * rate], rel=1e-5)


def test_a_fixed_number_of_rays_is_that_of_the_command_line(make_trainer):
    trainer = make_trainer("--no-adaptive_num_rays", "--num_rays", "100")
    advance(trainer, 1)
    trainer.save()
    assert resumed(make_trainer, "--no-adaptive_num_rays", "--num_rays", "20").step.ray_count.value.item() == 20
    proposals = make_trainer("--num_points", "2048", preset="-O2", folder=trainer.folder / "o2")
    advance(proposals, 1)
    proposals.save()
    larger = resumed(make_trainer, "--num_points", "16384", preset="-O2", folder=proposals.folder)
    assert larger.step.ray_count.value.item() == 16384 // 48


def test_half_a_line_at_the_end_of_the_history_is_dropped(make_trainer):
    trainer = make_trainer("--iters", "16")
    trainer.train()
    with open(trainer.folder / "history.jsonl", "a") as file:
        file.write('{"step": 32, "psn')
    resumed(make_trainer, "--iters", "24").train()
    assert [line["step"] for line in history(trainer.folder)] == [16, 24]


def test_what_a_run_left_that_was_killed_before_its_first_checkpoint_is_set_aside(monkeypatch, demo_scene, tmp_path):
    (tmp_path / "history.jsonl").write_text('{"step": 4, "psn')
    monkeypatch.setattr("sys.argv", ["main.py", str(demo_scene), *SMALL, "--workspace", str(tmp_path), "--iters", "4"])
    assert main.main() == 0
    assert [line["step"] for line in history(tmp_path)] == [4] and (tmp_path / "previous_1" / "history.jsonl").exists()


def test_a_history_that_cannot_be_written_is_named(make_trainer):
    trainer = make_trainer("--iters", "2")
    (trainer.folder / "history.jsonl").mkdir()
    with pytest.raises(UserError, match="Cannot write .*history.jsonl"):
        trainer.train()


def test_refined_poses_are_set_aside_with_their_run(make_trainer):
    trainer = make_trainer("--iters", "2", "--refine_poses")
    trainer.train()
    assert (trainer.folder / "poses.json").exists()
    assert (workspace.set_aside(trainer.folder) / "poses.json").exists() and not (trainer.folder / "poses.json").exists()


def test_what_a_signal_saves_is_finite(make_trainer):
    trainer = make_trainer("--iters", "2000", "--save_cnt", "1")
    plain = trainer.advance

    def poisoned():
        plain()
        if trainer.step.steps == 20:
            with torch.no_grad():
                trainer.model.field.colour[0].weight.fill_(torch.nan)
        if trainer.step.steps == 24:
            os.kill(os.getpid(), signal.SIGINT)

    trainer.advance = poisoned
    assert trainer.train() == signal.SIGINT
    state = checkpoint.load_checkpoint(checkpoint.find_checkpoint(trainer.folder, "latest"), "cpu")
    assert all(torch.isfinite(value).all() for value in state["field"].values())


def test_a_save_on_demand_leaves_what_training_goes_back_to_alone(make_trainer):
    trainer = make_trainer()
    trainer.snapshot.take(trainer.state_dict())
    advance(trainer, 1)
    trainer.save()
    assert trainer.snapshot.state["step"] == 0
    assert checkpoint.load_checkpoint(checkpoint.find_checkpoint(trainer.folder, "latest"), "cpu")["step"] == 1


def test_pictures_that_are_not_finite_are_told_and_end_nothing(make_trainer, capsys):
    trainer = make_trainer("--iters", "4")
    trainer.ema.mean[1].fill_(torch.nan)
    assert trainer.train() is None
    assert history(trainer.folder)[0]["psnr"] is None and "held-out PSNR not finite" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "text"), [(-3, "00:00:00"), (59.9, "00:00:59"), (3 * 3600 + 62, "03:01:02"), (90_000, "25:00:00")])
def test_hours(seconds, text):
    assert hours(seconds) == text
