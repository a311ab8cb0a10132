"""Every kernel against its twin on the rays and samples of a photographed scene, after a little training: forward and gradient, float32 and half."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from kernel_cases.cases import cases
from kernel_cases.work import scene_pool, work_of_size

FLAGS = ["-O", "--num_points", "4096", "--grid_size", "32", "--log2_table_size", "13", "--max_steps", "256"]
TOLERANCE = {torch.float16: 2e-3, torch.float32: 3e-4}  # of the largest value; a float32 position is known to 2^-24, 2.4e-4 of a cell of the finest grid


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_kernels_equal_their_twins(scene_data, device):
    pool = scene_pool(str(scene_data("bust")), FLAGS, torch.device(device), steps=48)
    work = work_of_size(pool, 2**13)
    assert work.used > 2**12 and (work.rays[:, 1] > 0).sum() > 10, "the rays meet something"
    checked = 0
    for case in cases(work, 13):
        for ours, theirs in zip(tensors(case.kernel()), tensors(case.twin()), strict=True):
            assert ours.dtype == theirs.dtype and torch.isfinite(ours.double()).all(), case.name
            if ours.is_floating_point():
                largest = max(theirs.double().abs().max().item(), 1e-6)
                difference = (ours.double() - theirs.double()).abs().max().item()
                assert difference <= TOLERANCE[ours.dtype] * largest, f"{case.name}: {difference} of {largest}"
            else:
                assert torch.equal(ours, theirs), case.name
            checked += 1
    assert checked >= 25


def tensors(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)
