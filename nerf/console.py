"""What a run shows while it goes on: a live line for a person, plain lines for a log, scalars for TensorBoard and for scripts."""

import contextlib
import json
import math
import shutil
import sys
import time
from pathlib import Path

from nerf.files import drop_broken_line, writable

PLAIN_INTERVAL = 10.0
BAR_WIDTH = 24


class Progress:
    """One line that tells how a run goes: live (tqdm) where stdout is a terminal, else a plain line at most every 10 seconds, and the last.

    total_hint: the number of steps to come, or None where time, not steps, ends the run; only the live bar uses it.
    """

    def __init__(self, total_hint=None):
        self._bar = _live_bar(total_hint) if sys.stdout.isatty() else None
        self._pending = None
        self._next_line = -math.inf

    def update(self, step, fields):
        """Show a step. fields: ordered dict of label -> short string; "step" is put first unless it is among them."""
        fields = fields if "step" in fields else {"step": str(step), **fields}
        if self._bar is not None:
            room = shutil.get_terminal_size().columns - 1 - (BAR_WIDTH if self._bar.total else 0)
            self._bar.set_description_str(fields_text(fields, room), refresh=False)
            self._bar.update(max(0, step - self._bar.n))
            return
        self._pending = fields_text(fields)
        if time.monotonic() >= self._next_line:
            self._print_pending()

    def print(self, text):
        """Print a line of its own, above the live one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)

    def close(self):
        """Leave the last state on the screen or in the log. May be called twice."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
        elif self._pending is not None:
            self._print_pending()

    def _print_pending(self):
        print(self._pending, flush=True)
        self._pending = None
        self._next_line = time.monotonic() + PLAIN_INTERVAL


class Scalars:
    """Numbers by step: TensorBoard events in WORKSPACE/run, and a JSON object a line in WORKSPACE/scalars.jsonl.

    Both are appended to when a run resumes. After that a step can occur twice in scalars.jsonl; the later line holds. A value that is not
    finite is written there as null.
    """

    def __init__(self, workspace):
        self._workspace = Path(workspace)
        self._writer = self._lines = None

    def add(self, step, values):
        """Record `values` (name -> number on the host) of a step. Raises UserError where they cannot be written."""
        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        with writable(self._workspace):
            if self._writer is None:
                self._open()
            for name, number in numbers.items():
                self._writer.add_scalar(name, number, step)
            self._lines.write(json.dumps({"step": step, **finite}) + "\n")

    def close(self):
        """Write out what is buffered. May be called twice, and before anything was added."""
        for file in filter(None, (self._writer, self._lines)):
            with contextlib.suppress(OSError):  # a full disk, of which whatever wrote before has told
                file.close()
        self._writer = self._lines = None

    def _open(self):
        from tensorboardX import (
            SummaryWriter,  # slow to import, and not needed to test or view
        )

        self._writer = SummaryWriter(str(self._workspace / "run"))
        path = self._workspace / "scalars.jsonl"
        drop_broken_line(path)
        self._lines = path.open("a", buffering=1, encoding="utf-8")


def fields_text(fields, room=None):
    """The fields as "label value" side by side; whole fields are left out from the end where they exceed `room` columns."""
    parts = [f"{label} {value}" for label, value in fields.items()]
    while room is not None and len(parts) > 1 and len("  ".join(parts)) > room:
        parts.pop()
    return "  ".join(parts)


def _live_bar(total):
    from tqdm import tqdm

    bar_format = "{percentage:3.0f}% |{bar:16}| {desc}" if total else "{desc}"
    size = shutil.get_terminal_size()  # tqdm hides the bar on a terminal that reports no size, as some containers' do
    return tqdm(total=total, file=sys.stdout, bar_format=bar_format, mininterval=0.2, miniters=1, ncols=size.columns, nrows=size.lines)
