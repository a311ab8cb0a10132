"""`main.py SCENE --test` of checkpoints that hold no surface: the pictures are made, and a sentence says why there is no mesh."""

import math
import sys

import pytest

import main
from conftest import advance
from nerf.model import MARCHED_START


@pytest.fixture
def trained(make_trainer):
    """A trainer of the demo scene after a few steps."""
    trainer = make_trainer()
    advance(trainer, 32)
    return trainer


def filled(value):
    """A function that gives every weight of a trainer's model a value."""

    def spoil(trainer):
        for tensor in (*trainer.ema.parameters, *trainer.ema.mean):
            tensor.data.fill_(value)

    return spoil


def emptied(trainer):
    grid = trainer.model.sampler.grid
    grid.density.zero_()
    grid.refresh_bits()
    assert not grid.bits.any()


SPOILT = {
    "an empty field": (filled(0.0), f"the field is nowhere denser than {math.exp(MARCHED_START):.3g}, and a surface lies at 5;"),
    "a field of NaN": (filled(float("nan")), "the density of the field is not a number;"),
    "no occupied cells": (emptied, "no cell of the occupancy grid is occupied;"),
}
SIZES = "--max_steps 128 --bound 2 --num_points 4096 --grid_size 32 --log2_table_size 13"  # of conftest's trainers


@pytest.mark.parametrize("name", SPOILT)
def test_a_checkpoint_without_a_surface_ends_in_a_sentence(trained, name, monkeypatch, capsys):
    spoil, why = SPOILT[name]
    spoil(trained)
    trained.save()
    scene = [trained.options.path, "-O", *SIZES.split(), "--workspace", trained.options.workspace, "--device", "cpu"]
    for asked_for, code in ((["--mcubes_reso", "32"], 1), ([], 0)):
        monkeypatch.setattr(sys, "argv", ["main.py", *scene, "--test", "--test_no_video", *asked_for])
        assert main.main() == code
        error = capsys.readouterr().err
        assert error.startswith("main.py: There is no mesh to make: ") and why in error and error.count("\n") == 1
        assert (trained.folder / "results" / "metrics.json").exists() and not (trained.folder / "mesh").exists()
