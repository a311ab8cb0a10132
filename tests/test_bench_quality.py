"""The quality benchmark: its marks and turns on a small scene, its table, its measure of memory, and what it refuses."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import bench_quality
from quality_report import summarise, table
from run_memory import RunMemory

SMALL = ["--num_points", "2048", "--log2_table_size", "11"]
NGP = "ngp: -O --max_steps 64 --grid_size 16 --bound 2"
NERFACTO = "nerfacto: -O2 --num_steps 16 8 4"


@pytest.fixture
def bench(monkeypatch, capsys):
    """A function: arguments -> (exit code, lines on stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench_quality.py", *map(str, arguments)])
        code = bench_quality.main()
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return run


def test_every_run_is_measured_at_every_mark_in_turns(bench, demo_scene, tmp_path):
    out = tmp_path / "out"
    (out / "ngp_0").mkdir(parents=True)
    letters = out / "letter", out / "ngp_0" / "letter"
    for letter in letters:
        letter.write_text("dear")
    (out / "quality.json").write_text("old")
    arguments = "--at", 0.3, "--at_steps", 20, 10, "--seeds", 0, 1, "--photos", 2, "--out", out
    code, lines, complaint = bench(demo_scene, *arguments, "--set", NGP, "--set", NERFACTO, "--", *SMALL)
    assert code == 0, complaint
    assert [letter.read_text() for letter in letters] == ["dear", "dear"]
    report = json.loads((out / "quality.json").read_text())
    assert report["photos"] == 2 and report["held_out"] == 3 and report["marks"] == ["0.3 s", "10 steps", "20 steps"]
    assert list(report["curves"]) == ["ngp, seed 0", "ngp, seed 1", "nerfacto, seed 0", "nerfacto, seed 1"]
    for points in report["curves"].values():
        assert {point["mark"] for point in points} == set(report["marks"]) and len(points) == 3
        assert [point["steps"] for point in points] == sorted(point["steps"] for point in points)
        assert all(point["photos"] == 2 and point["ms_per_step"] > 0 and point["peak_memory_mib"] is None for point in points)
        assert all(0 < point["ssim"] < 1 and 5 < point["psnr"] < 40 for point in points)
        of_mark = {point["mark"]: point for point in points}
        assert of_mark["0.3 s"]["seconds"] >= 0.3 and of_mark["10 steps"]["steps"] >= 10 and of_mark["20 steps"]["steps"] >= 20
        # A mark that another did not overtake is met to the step.
        assert points[0]["mark"] != "10 steps" or points[0]["steps"] == 10
    turns = [line.split(" {")[0] for line in lines if " {" in line]
    assert list(dict.fromkeys(turns)) == list(report["curves"])
    assert turns.index("nerfacto, seed 1") < len(turns) - 1 - turns[::-1].index("ngp, seed 0")  # the first goes on after the last began
    assert len([line for line in lines if line.startswith(("| ngp |", "| nerfacto |"))]) == 6
    assert (out / "quality.png").stat().st_size > 1000
    first = report["curves"]["ngp, seed 1"][0]["mark"].replace(" ", "_")
    assert json.loads((out / "ngp_1" / f"at_{first}" / "metrics.json").read_text())["count"] == 2


def test_marks():
    def trainer(seconds, steps):
        return SimpleNamespace(clock=SimpleNamespace(seconds=seconds), step=SimpleNamespace(steps=steps))

    seconds, steps = bench_quality.Mark("s", 2.5), bench_quality.Mark("steps", 1_000_000)
    assert (str(seconds), str(steps)) == ("2.5 s", "1000000 steps")
    assert [seconds.reached(trainer(*now)) for now in ((2.4, 10**7), (2.5, 0))] == [False, True]
    assert [steps.reached(trainer(*now)) for now in ((9.0, 999_999), (0.0, 1_000_000))] == [False, True]


@pytest.mark.parametrize(("total", "count", "expected"), [(6, 6, [0, 1, 2, 3, 4, 5]), (6, 1, [3]), (6, 2, [1, 4]), (37, 3, [6, 18, 30])])
def test_photos_are_chosen_evenly(total, count, expected):
    assert bench_quality._evenly(total, count).tolist() == expected


def test_all_choices_of_photos_are_distinct():
    for total in range(1, 40):
        for count in range(1, total + 1):
            chosen = bench_quality._evenly(total, count)
            assert len(np.unique(chosen)) == count and chosen.min() >= 0 and chosen.max() < total


def _point(mark, psnr, **others):
    rest = {"ssim": 0.5, "ms_per_step": 2.0, "steps": 1000, "seconds": 2.0, "peak_memory_mib": 1234.5}
    return {"mark": mark, "psnr": psnr, **rest, **others}


def test_summary_and_table():
    of_a = {"a, seed 0": [_point("2 s", 20.0), _point("9 steps", None)], "a, seed 1": [_point("2 s", 22.0, steps=1500)]}
    curves = {**of_a, "b, seed 0": [], "b, seed 1": [_point("2 s", 19.0)]}
    rows = summarise(curves, ["a", "b"], [0, 1], ["2 s", "9 steps"])
    assert [(row["set"], row["mark"], row["runs"]) for row in rows] == [("a", "2 s", 2), ("a", "9 steps", 1), ("b", "2 s", 1)]
    assert rows[0]["psnr"] == {"mean": 21.0, "sd": pytest.approx(2**0.5), "count": 2}
    assert rows[1]["psnr"] == {"mean": None, "sd": None, "count": 0} and "lpips" not in rows[0]
    report = {"scene": "x", "device": "d", "torch": "t", "date": "now", "photos": 3, "held_out": 7, "seeds": [0, 1], "rows": rows}
    lines = table(report).splitlines()
    assert lines[0] == "x; 3 of 7 held-out photos; seeds 0, 1; d, torch t, now"
    assert lines[2] == "| set | at | PSNR, dB | SSIM | ms a step | peak MiB | steps | seconds |"
    assert lines[4] == "| a | 2 s | 21.00 ± 1.41 | 0.5000 ± 0.0000 | 2.00 | 1,234 | 1,250 | 2.0 |"
    assert lines[5] == "| a | 9 steps | - | 0.5000 | 2.00 | 1,234 | 1,000 | 2.0 |"


def test_a_run_that_is_not_finite_is_not_left_out_in_silence():
    curves = {"a, seed 0": [_point("2 s", 20.0)], "a, seed 1": [_point("2 s", None)]}
    report = {"scene": "x", "device": "d", "torch": "t", "date": "now", "photos": 3, "held_out": 7, "seeds": [0, 1]}
    lines = table({**report, "rows": summarise(curves, ["a"], [0, 1], ["2 s"])}).splitlines()
    assert "| 20.00 (1 of 2 runs) |" in lines[4]


def test_lpips_and_memory_are_columns_only_where_known():
    curves = {"a, seed 0": [_point("2 s", 20.0, lpips=0.25, peak_memory_mib=None)]}
    report = {"scene": "x", "device": "d", "torch": "t", "date": "now", "photos": 3, "held_out": 7, "seeds": [0]}
    lines = table({**report, "rows": summarise(curves, ["a"], [0], ["2 s"])}).splitlines()
    assert "LPIPS" in lines[2] and "0.2500" in lines[4] and "MiB" not in lines[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["SCENE", "--set", NGP, "--at", "0"], "--at 0"),
        (["SCENE", "--set", NGP, "--at", "inf"], "--at inf"),
        (["SCENE", "--set", NGP, "--at", "nan"], "--at nan"),
        (["SCENE", "--set", NGP, "--at", "soon"], "soon"),
        (["SCENE", "--set", NGP, "--at_steps", "-3"], "--at_steps -3"),
        (["SCENE", "--set", NGP, "--photos", "0"], "--photos 0"),
        (["SCENE", "--set", NGP, "--photos", "4"], "only 3 photos"),
        (["SCENE", "--set", NGP, "--", "--train_split", "all"], "held out"),
        (["SCENE", "--set", NGP, "--seeds", "1", "1"], "each seed once"),
        (["SCENE", "--set", NGP, "--seeds", "-1"], "--seed"),
        (["SCENE", "--set", "ngp -O"], "NAME: FLAGS"),
        (["SCENE", "--set", " : -O"], "NAME: FLAGS"),
        (["SCENE", "--set", "../a: -O"], "NAME: FLAGS"),
        (["SCENE", "--set", NGP, "--set", NGP], "another set of this name"),
        (["SCENE", "--set", NGP + " --lr -1"], "--lr"),
        (["SCENE", "--set", NGP, "--set", "b: -O -O2"], "-O2"),
        (["nowhere", "--set", NGP], "nowhere"),
        (["SCENE"], "--set"),
    ],
)
def test_what_makes_no_sense_is_one_sentence_before_any_training(bench, demo_scene, tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr(bench_quality, "Trainer", None)
    out = tmp_path / "out"
    code, _, complaint = bench("--out", out, *[demo_scene if argument == "SCENE" else argument for argument in arguments])
    assert code == 1 and words in complaint and len(complaint.strip().splitlines()) == 1, complaint
    assert not (out / "quality.json").exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(bench, demo_scene, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_quality, "Trainer", None)
    (tmp_path / "out").write_text("a file")
    code, _, complaint = bench(demo_scene, "--set", NGP, "--out", tmp_path / "out")
    assert code == 1 and str(tmp_path / "out") in complaint and len(complaint.strip().splitlines()) == 1


class FakeDevice:
    """Stands in for torch.cuda's counters: what is allocated, and the most since the last reset."""

    def __init__(self, monkeypatch):
        self.now = self.most = 0
        for name in ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats", "synchronize"):
            monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: getattr(self, f"_{name}")())

    def _memory_allocated(self):
        return self.now

    def _max_memory_allocated(self):
        return self.most

    def _reset_peak_memory_stats(self):
        self.most = self.now

    def _synchronize(self):
        pass

    def add(self, mib):
        self.now += mib * 2**20
        self.most = max(self.most, self.now)

    def use(self, mib):
        """Allocated and given back."""
        self.add(mib)
        self.add(-mib)


class FakeReplay:
    """Recorded steps as nerf.replay.Replay has them: name -> MiB."""

    def __init__(self):
        self.graphs = {}

    def memory(self):
        return sum(self.graphs.values()) * 2**20


def test_memory_of_one_run_among_others(monkeypatch):
    device = FakeDevice(monkeypatch)
    device.add(1000)  # the other runs
    memory, replay = RunMemory(torch.device("cuda")), FakeReplay()
    device.add(100)  # this one
    memory.watch(replay)
    device.add(500)  # a run that is made later
    memory.start()
    device.use(40)  # a step runs unrecorded
    device.add(10)  # and leaves something for good
    assert not memory.stale()
    device.use(40)  # it is recorded, which allocates the same in a pool of its own, and keeps it
    replay.graphs["step"] = 48
    assert memory.stale()
    memory.take()
    assert not memory.stale()
    assert memory.stop() == 110 + 48
    device.use(300)  # an evaluation
    device.add(200)  # others go on
    memory.start()
    device.use(5)
    assert memory.stop() == 110 + 5 + 48
    memory.start()
    device.use(40)  # another variant runs unrecorded beside the recorded one
    device.use(40)
    replay.graphs["other"] = 2
    memory.take()
    device.use(5)
    assert memory.stop() == 110 + 48 + 40
    memory.start()
    replay.graphs.clear()
    memory.take()
    device.use(7)
    assert memory.stop() == 110 + 50  # before they were dropped
    memory.start()
    device.use(7)
    assert memory.stop() == 110 + 7


def test_no_memory_is_measured_on_a_cpu():
    memory = RunMemory(torch.device("cpu"))
    memory.watch(FakeReplay())
    memory.start()
    assert not memory.stale() and memory.stop() is None


@pytest.mark.gpu
def test_the_same_run_twice_in_a_process_needs_the_same_memory(bench, demo_scene, tmp_path):
    flags = ["--num_points", "65536", "--log2_table_size", "15"]
    arguments = "--at_steps", 200, 300, "--photos", 1, "--out", tmp_path / "out", "--set", "a: -O --bound 2", "--set", "b: -O --bound 2"
    code, _, complaint = bench(demo_scene, *arguments, "--", *flags)
    assert code == 0, complaint
    curves = json.loads((tmp_path / "out" / "quality.json").read_text())["curves"]
    for one, other in zip(*curves.values(), strict=True):
        assert 10 < one["peak_memory_mib"] == pytest.approx(other["peak_memory_mib"], rel=0.1)
