"""The kernel benchmark at tiny sizes: its work, the bytes that it counts, and its tables."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import bench_kernels
from kernel_cases import work as kernel_work
from kernel_cases.cases import cases
from kernel_cases.intervals import interval_cases
from nerf.errors import UserError

KERNELS = ["grid forward", "grid gradient", "SH 4 forward", "SH 4 gradient", "frequency 6 forward", "frequency 6 gradient", "composite forward",
           "composite gradient", "march_rays_train", "packbits", "morton3D", "morton3D_invert", "near_far_from_aabb", "generate_rays"]  # fmt: skip
INTERVALS = {"place_samples": (48, 1956), "resample": (256, 2964), "interlevel_loss": (96, 1360)}  # samples of a ray, and its bytes


@pytest.fixture(scope="module")
def work():
    return kernel_work.work_of_size(kernel_work.synthetic_pool(torch.device("cpu"), grid_size=16), 512)


def test_samples_fill_the_buffer_and_lie_in_balls(work):
    assert 0.8 * 512 < work.used <= 512
    assert work.rays[:, 1].sum() == work.used
    unit = work.unit_positions()[: work.used]
    assert unit.min() > 0 and unit.max() < 1
    pool = kernel_work.synthetic_pool(torch.device("cpu"), grid_size=16)
    occupied = sum(byte.bit_count() for byte in pool.bits.tolist()) / (8 * len(pool.bits))
    assert 0.001 < occupied < 0.3


def evaluated(formula, symbols):
    """The bytes of a formula such as "12 M + cells / 8"."""
    total = 0
    for term in formula.split(" + "):
        product, _, divisor = term.partition(" / ")
        total += math.prod(symbols.get(factor) or int(factor) for factor in product.split()) // int(divisor or 1)
    return total


def test_bytes_follow_their_formulas(work):
    measured = list(cases(work, 10))
    entries = (measured[0].bytes - 12 * 512 - 2 * 32 * 512) // 4
    assert 16 * 2**10 >= entries > 15 * 2**10
    for case in measured:
        per_item = case.name in KERNELS[9:]
        symbols = {"M": 512, "N": 512 if per_item else len(work.rays), "E": entries, "F": 2, "L": 16, "K": 3, "images": 100, "cells": 8 * len(work.march_arguments[-1])}
        assert case.bytes == evaluated(case.formula, symbols), case.name


def test_bytes_of_intervals_follow_their_formulas(work):
    for case in interval_cases(work):
        samples, count = INTERVALS[case.name.split(",")[0]]
        assert case.formula == f"{count} N" and case.bytes == 512 // samples * count, case.name


def test_a_kernel_and_its_twin_agree(work):
    for case in [*cases(work, 10), *interval_cases(work)]:
        torch.manual_seed(0)
        for ours, theirs in zip(tensors(case.kernel()), tensors(case.twin()), strict=True):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, case.name
            torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2 * max(1.0, ours.double().abs().max().item()), msg=lambda text, name=case.name: f"{name}: {text}")


def tensors(result):
    return [result] if isinstance(result, torch.Tensor) else result


def test_tables_and_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_kernels, "TWIN_RUNS", 1)
    monkeypatch.setattr(bench_kernels, "TWIN_WARM", 0)
    small = ["--sizes", "5", "6", "--log2_table_size", "8", "--grid_size", "16", "--copy_mib", "1", "--warm", "0", "--runs", "2", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["bench_kernels.py", *small])
    bench_kernels.main()
    report = json.loads((tmp_path / "out" / "kernels.json").read_text())
    assert {row["kernel"].split(",")[0] for row in report["rows"]} == {*KERNELS, *INTERVALS}
    assert {row["size"] for row in report["rows"]} == {5, 6}
    for row in report["rows"]:
        assert row["ms"] > 0 and row["twin_over_kernel"] > 0
        assert row["of_copy"] == pytest.approx(row["bytes"] / row["ms"] * 1e-6 / report["copy_gb_per_s"])
    markdown = (tmp_path / "out" / "kernels.md").read_text()
    assert markdown.count("| 2^6 |") == len(report["rows"]) / 2 and markdown in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["bench_kernels.py", *small, "--only", "no such kernel"])
    assert bench_kernels.main() == 1
    assert capsys.readouterr().err.startswith("bench_kernels.py: --only no such kernel: ")


def test_samples_of_a_trained_scene(demo_scene):
    flags = ["-O", "--num_points", "2048", "--grid_size", "32", "--log2_table_size", "10", "--max_steps", "64", "--bound", "2"]
    pool = kernel_work.scene_pool(str(demo_scene), flags, torch.device("cpu"), steps=3)
    work = kernel_work.work_of_size(pool, 3000)
    assert 0.8 * 3000 < work.used <= 3000 and work.march["bound"] == 2


def test_packages_that_are_not_compiled_are_refused(work, monkeypatch):
    import gridencoder

    monkeypatch.setattr(gridencoder.ops, "kernels", gridencoder.reference)
    with pytest.raises(UserError, match=r"gridencoder is not compiled: python scripts/doctor.py"):
        next(cases(work, 10))
