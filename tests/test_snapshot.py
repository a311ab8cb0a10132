"""The snapshot of a run: a copy of its own, in the same memory each time, which stays as it is while files of it are written."""

import threading

import pytest
import torch

from conftest import DEVICES
from nerf.errors import UserError
from nerf.snapshot import Snapshot


def state(device, value=1.0, entries=5):
    full = torch.full((entries, 2), value, device=device)
    return {"step": int(value), "parts": [full, (full[0].half(), "name")], "more": {"none": None, "count": torch.tensor(3, device=device)}}


@pytest.mark.parametrize("device", DEVICES)
def test_a_copy_is_its_own_and_takes_the_memory_of_the_one_before(device):
    snapshot, first = Snapshot(), state(device)
    snapshot.take(first)
    first["parts"][0].zero_()
    assert snapshot.state["parts"][0].device.type == "cpu" and bool((snapshot.state["parts"][0] == 1).all())
    assert snapshot.state["parts"][1][0].dtype == torch.float16 and snapshot.state["parts"][1][1] == "name"
    address = snapshot.state["parts"][0].data_ptr()
    snapshot.take(state(device, 2.0))
    assert snapshot.state["parts"][0].data_ptr() == address and bool((snapshot.state["parts"][0] == 2).all())
    assert snapshot.state["step"] == 2 and snapshot.state["more"]["none"] is None and int(snapshot.state["more"]["count"]) == 3


@pytest.mark.parametrize("device", DEVICES)
def test_a_state_of_other_shapes_is_copied_too(device):
    snapshot = Snapshot()
    snapshot.take(state(device))
    snapshot.take({**state(device, 3.0, entries=9), "new": [torch.ones(1, device=device)]})
    assert (
        snapshot.state["parts"][0].shape == (9, 2)
        and bool((snapshot.state["parts"][0] == 3).all())
        and float(snapshot.state["new"][0]) == 1
    )


@pytest.mark.gpu
def test_the_memory_of_a_gpus_state_is_page_locked(gpu):
    snapshot = Snapshot()
    snapshot.take(state(gpu))
    assert snapshot.state["parts"][0].is_pinned()


def test_without_page_locked_memory_the_copy_is_made_all_the_same(monkeypatch):
    empty = torch.empty

    def refuses(*arguments, **options):
        if "pin_memory" in options:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*arguments, **options)

    monkeypatch.setattr(torch, "empty", refuses)
    snapshot = Snapshot()
    snapshot.take(state("cpu"))
    assert bool((snapshot.state["parts"][0] == 1).all())


def test_a_copy_waits_until_the_one_before_is_written():
    snapshot, go, written = Snapshot(), threading.Event(), []

    def save(name, kept):
        assert go.wait(60)
        written.append((name, kept["step"], float(kept["parts"][0].sum())))

    snapshot.take(state("cpu"))
    snapshot.write(save, "first")
    snapshot.write(save, "second")
    assert snapshot.busy and not written
    threading.Timer(0.2, go.set).start()
    snapshot.take(state("cpu", 2.0))
    assert written == [("first", 1, 10.0), ("second", 1, 10.0)] and not snapshot.busy


def test_what_a_write_raises_is_raised_by_the_next_copy():
    def save(_):
        raise UserError("the disk is full")

    snapshot = Snapshot()
    snapshot.take(state("cpu"))
    snapshot.write(save)
    with pytest.raises(UserError, match="disk is full"):
        snapshot.take(state("cpu", 2.0))
    snapshot.settle()  # told once
