"""What a run shows: a live line on a terminal, few plain lines in a log, scalars that survive a kill."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from nerf.console import PLAIN_INTERVAL, Progress, Scalars, fields_text
from nerf.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


def run_on_terminal(code, columns):
    """The output of some code whose stdout is a terminal of that many columns."""
    master, slave = pty.openpty()
    env = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=slave, stderr=slave, env=env) as process:
        os.close(slave)
        chunks = []
        while True:
            try:
                chunk = os.read(master, 65536)
            except OSError:
                break
            if not chunk:
                break
            chunks.append(chunk)
        assert process.wait() == 0, b"".join(chunks)
    os.close(master)
    return b"".join(chunks).decode()


def test_plain_lines_at_most_one_every_ten_seconds_and_the_last(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr("nerf.console.time", clock)
    progress = Progress(None)
    for step in range(25):
        progress.update(step, {"loss": f"{step / 10:.1f}"})
        clock.now += 1
    progress.close()
    progress.close()
    assert PLAIN_INTERVAL == 10
    assert capsys.readouterr().out.splitlines() == ["step 0  loss 0.0", "step 10  loss 1.0", "step 20  loss 2.0", "step 24  loss 2.4"]


def test_a_step_is_shown_once_and_other_lines_pass(capsys):
    progress = Progress(100)
    progress.update(7, {"step": "7/100", "PSNR": "20.1"})
    progress.print("validated")
    progress.close()
    assert capsys.readouterr().out.splitlines() == ["step 7/100  PSNR 20.1", "validated"]


def test_nothing_to_close(capsys):
    Progress(None).close()
    assert capsys.readouterr().out == ""


def test_fields_are_left_out_whole_where_there_is_no_room():
    fields = {"step": "10", "loss": "0.1", "PSNR": "20.0"}
    assert fields_text(fields, 80) == "step 10  loss 0.1  PSNR 20.0"
    assert fields_text(fields, 20) == "step 10  loss 0.1"
    assert fields_text(fields, 3) == "step 10"


def test_live_line_on_a_terminal():
    code = """
import time
from nerf.console import Progress
progress = Progress(None)
for step in range(1000, 1004):
    progress.update(step, {"loss": "0.5", "PSNR": "21.5", "memory": "300 MB", "left": "1:00"})
    time.sleep(0.25)
progress.print("a note")
progress.update(1005, {"loss": "0.4"})
progress.close()
"""
    wide, narrow = run_on_terminal(code, 100), run_on_terminal(code, 30)
    assert "step 1003  loss 0.5  PSNR 21.5  memory 300 MB  left 1:00" in wide
    assert wide.count("\n") == 2, "the note and the end of the live line"
    assert "a note\r\n" in wide
    assert wide.rstrip().splitlines()[-1].split("\r")[-1].startswith("step 1005  loss 0.4")
    assert "step 1003  loss 0.5" in narrow and "PSNR" not in narrow


def test_live_bar_where_the_end_is_known():
    code = """
from nerf.console import Progress
progress = Progress(200)
progress.update(50, {"loss": "0.5"})
progress.close()
"""
    assert " 25% |" in run_on_terminal(code, 80)


def test_scalars_reach_both_files(tmp_path):
    scalars = Scalars(tmp_path)
    scalars.add(1, {"train/loss": 0.5, "train/rays": 4096})
    scalars.add(2, {"train/loss": float("nan")})
    lines = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "train/loss": 0.5, "train/rays": 4096.0}, {"step": 2, "train/loss": None}]
    scalars.close()
    scalars.close()
    events = list((tmp_path / "run").glob("events.out.tfevents.*"))
    assert len(events) == 1 and b"train/loss" in events[0].read_bytes()


def test_scalars_go_on_after_a_kill_in_the_middle_of_a_line(tmp_path):
    (tmp_path / "scalars.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    scalars = Scalars(tmp_path)
    scalars.add(2, {"loss": 0.25})
    scalars.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "scalars.jsonl").read_text().splitlines()] == [1, 2]


def test_nothing_is_written_or_imported_before_the_first_scalar(tmp_path):
    code = f"""
import sys
from nerf.console import Scalars
scalars = Scalars({str(tmp_path)!r})
scalars.close()
sys.exit("tensorboardX" in sys.modules or "tqdm" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["scalars.jsonl", "run"])
def test_scalars_that_cannot_be_written_are_named(tmp_path, name):
    (tmp_path / name).mkdir() if name == "scalars.jsonl" else (tmp_path / name).write_text("in the way")
    scalars = Scalars(tmp_path)
    with pytest.raises(UserError, match="Cannot write"):
        scalars.add(1, {"loss": 0.5})
    scalars.close()
