"""The fused fields' CUDA kernels on a machine without a GPU: their own sources, compiled for threads of the system (tests/emulator), against the twin in float64.

A block's threads run at once here and meet only where the kernel says so. Shared memory starts as NaN, a vector must lie at a multiple of its size, and blocks are
so few that each comes round again.
"""

import ctypes
import faulthandler
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from fusedfield import reference
from gridencoder import GridEncoder
from nerf.fields.merf import LIMITS
from test_fusedfield import BOUND, SEED, TABLE, grid_arguments, in_float64, made, ngp_field, ngp_weights, relative
from test_fusedfield_merf import encodings_of, grids_of, merf_field, weights_of
from test_fusedfield_render import MARCH, T_THRESH, rays_and_cells

EMULATOR = Path(__file__).parent / "emulator"
COMPILER = [os.environ.get("CXX", "g++"), "-std=c++20", "-O1", "-fPIC", "-pthread", "-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]
CUDA = ["-D__CUDACC__", "-Wno-unknown-pragmas", f"-I{EMULATOR / 'include'}", "-include", "cuda_runtime.h", "-x", "c++"]
SIZES = [(1, None), (33, None), (700, None), (700, 397), (700, 0)]  # rows, and how many of them are in use; two blocks take at most 512 at once
PATIENCE = 120  # seconds for a test that takes four: where a lane does not come to a place at which its warp meets, the others wait for ever
FLOOR = 3e-3  # |error| / |truth| beyond that of PyTorch in half precision, in which some samples take the other side of a ReLU


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The launchers of fusedfield as a ctypes library; skips where the compiler is too old."""
    folder = tmp_path_factory.mktemp("emulated")
    (folder / "probe.cpp").write_text("#include <barrier>\n#include <thread>\nstd::jthread thread; _Float16 half;")
    if shutil.which(COMPILER[0]) is None or subprocess.run([*COMPILER, "-c", "probe.cpp"], cwd=folder, capture_output=True, check=False).returncode:
        pytest.skip(f"{COMPILER[0]} is no compiler that knows std::barrier, std::jthread and _Float16 (g++ 12 does)")
    for package in ("fusedfield", "gridencoder", "raymarching", "shencoder"):
        shutil.copytree(ROOT / package / "src", folder / package / "src")
    source = folder / "fusedfield" / "src"
    shutil.copytree(EMULATOR / "fusedfield", source, dirs_exist_ok=True)
    files = [*source.glob("*.cu"), source / "entry.cpp"]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda file: subprocess.run([*COMPILER, *CUDA, "-c", file, "-o", f"{file}.o"], check=True), files))
    subprocess.run([*COMPILER, "-shared", *[f"{file}.o" for file in files], "-o", folder / "emulated.so"], check=True)
    return ctypes.CDLL(str(folder / "emulated.so"))


@pytest.fixture
def emulated(library):
    """The library; ends the process where a test takes too long."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    yield library
    faulthandler.cancel_dump_traceback_later()


def call(function, *arguments):
    """Calls it with tensors as pointers, lists of tensors as pointers to pointers, None as null, and numbers as they are (a float as 32 bits)."""

    def given(argument):
        if argument is None:
            return ctypes.c_void_p()
        if isinstance(argument, list):
            return (ctypes.c_void_p * len(argument))(*[tensor.data_ptr() for tensor in argument])
        if isinstance(argument, torch.Tensor):
            assert argument.is_contiguous()
            return ctypes.c_void_p(argument.data_ptr())
        return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int64(argument)

    function(*map(given, arguments))


def counted(used):
    return None if used is None else torch.tensor([used], dtype=torch.int32)


def halves(*shape):
    return torch.full(shape, 7.0, dtype=torch.float16)  # what has to be overwritten


def assert_near(ours, truth, plain):
    """Each of `ours` is about as near to the float64 truth as PyTorch in half precision."""
    for mine, exact, half in zip(ours, truth, plain, strict=True):
        exact = exact.double().reshape(mine.shape)
        assert relative(mine, exact) <= 1.5 * relative(half.reshape(mine.shape), exact) + FLOOR if exact.any() else not mine.any()


def both(function, *arguments):
    """(what a function of the twin gives in float64, and with its first argument as it is), as tuples."""
    results = in_float64(function, *arguments), function(*arguments)
    return tuple(result if isinstance(result, tuple) else (result,) for result in results)


def levels_of(table, offsets, resolutions):
    return table, offsets, resolutions, len(table), len(resolutions)


@pytest.mark.parametrize(("rows", "used"), SIZES)
def test_ngp_with_its_grid(emulated, rows, used):
    field, count = ngp_field("cpu"), counted(used)
    positions, directions = made(rows, "cpu")
    *grid, bound = grid_arguments(field, torch.float16)
    weights, raw, logit = ngp_weights(field), halves(rows, 4), halves(rows)
    call(emulated.ngp_at, positions, directions, *levels_of(*grid), bound, weights, 1.5, rows, count, raw, logit)
    encoding = reference._encode(positions, grid[0].float(), *grid[1:], bound).half()
    (truth,), (plain,) = both(reference.ngp, encoding, directions, weights, count, 1.5)
    assert_near((raw, logit), (truth, truth[:, 0]), (plain, plain[:, 0]))


@pytest.mark.parametrize(("rows", "used"), SIZES)
def test_ngp_networks_and_their_gradients(emulated, rows, used):
    field, count = ngp_field("cpu"), counted(used)
    _, directions = made(rows, "cpu")
    encoding, gradient, weights = torch.randn(rows, 32).half(), torch.randn(rows, 4), ngp_weights(field)
    raw, of_encoding, of_view, of_weights = halves(rows, 4), halves(rows, 32), halves(rows, 16), torch.zeros(9280)
    call(emulated.ngp, encoding, directions, weights, 1.5, rows, count, raw)
    assert_near((raw,), *both(reference.ngp, encoding, directions, weights, count, 1.5))
    call(emulated.ngp_backward, encoding, directions, weights, rows, count, gradient, torch.tensor(4.0), of_encoding, of_view, of_weights)
    assert_near((of_encoding, of_weights, of_view), *both(reference.ngp_backward, encoding, directions, weights, count, 4 * gradient, None, True))


def test_ngp_whole_rays(emulated):
    rays, field = 40, ngp_field("cpu")
    given, cells = rays_and_cells(rays, "cpu")
    *grid, bound = grid_arguments(field, torch.float16)
    features, opacity, depth = torch.full((rays, 3), 7.0), torch.full((rays,), 7.0), torch.full((rays,), 7.0)
    call(
        emulated.ngp_render, *given, cells, *levels_of(*grid), bound, ngp_weights(field), 2.5, MARCH["cascades"], MARCH["grid_size"], MARCH["dt_gamma"], MARCH["max_steps"],
        T_THRESH, rays, features, opacity, depth,
    )  # fmt: skip
    truth = reference.ngp_render(*given, cells, grid[0].float(), *grid[1:], bound, ngp_weights(field), 2.5, *MARCH.values(), T_THRESH)
    for ours, exact in zip((features, opacity, depth), truth, strict=True):
        assert torch.equal(ours.isfinite(), exact.isfinite()) and exact.nan_to_num(0).any()
        assert relative(ours.nan_to_num(0), exact.double().nan_to_num(0)) < 1e-2


@pytest.mark.parametrize("levels", [1, 5, 8])
@pytest.mark.parametrize(("rows", "used"), SIZES)
def test_proposal(emulated, rows, used, levels):
    torch.manual_seed(SEED)
    grid, columns, count = GridEncoder(levels=levels, finest_resolution=128, log2_table_size=TABLE), 2 * levels, counted(used)
    table = torch.nn.init.uniform_(grid.table.detach(), -0.5, 0.5).half()
    positions, weights, gradient = made(rows, "cpu")[0], [torch.randn(16, columns) / 4, torch.randn(1, 16) / 4], torch.randn(rows)
    encoding = reference._encode(positions, table.float(), grid.offsets, grid.resolutions, BOUND).half()
    at, logit, of_encoding, of_weights = halves(rows), halves(rows), halves(rows, columns), torch.zeros(16 * columns + 16)
    call(emulated.proposal_at, positions, *levels_of(table, grid.offsets, grid.resolutions), BOUND, weights, rows, count, at)
    call(emulated.proposal, encoding, columns, weights, rows, count, logit)
    truth, plain = both(reference.proposal, encoding, weights, count)
    assert_near((at, logit), 2 * truth, 2 * plain)
    call(emulated.proposal_backward, encoding, columns, weights, rows, count, gradient, torch.tensor(4.0), of_encoding, of_weights)
    assert_near((of_encoding, of_weights), *both(reference.proposal_backward, encoding, weights, count, 4 * gradient, None))


@pytest.mark.parametrize(("rows", "used"), SIZES)
def test_merf(emulated, rows, used):
    field, count, gradient = merf_field("cpu"), counted(used), torch.randn(rows, 8)
    positions, weights = made(rows, "cpu")[0], weights_of(field)
    tables, offsets, resolutions, bound = grids_of(field, torch.float16)
    raw, logit, levels = halves(rows, 8), halves(rows), len(resolutions[0])
    entries = torch.tensor([len(table) for table in tables])
    call(emulated.merf_at, positions, tables, offsets, resolutions, entries, levels, bound, weights, *LIMITS, rows, count, raw, logit)
    truth = reference.merf_at(positions, [table.float() for table in tables], offsets, resolutions, bound, weights, *LIMITS, count)
    plain = reference.merf_at(positions, tables, offsets, resolutions, bound, weights, *LIMITS, count)
    assert_near((raw, logit), (truth, truth[:, 0]), (plain, plain[:, 0]))
    encodings, of_encoding, of_weights = encodings_of(rows, "cpu", torch.float16), halves(rows, 32), torch.zeros(64 * 40)
    call(emulated.merf, encodings, weights, *LIMITS, rows, count, raw)
    assert_near((raw,), *both(reference.merf, encodings, weights, *LIMITS, count))
    call(emulated.merf_backward, encodings, weights, *LIMITS, rows, count, gradient, torch.tensor(4.0), of_encoding, of_weights)
    assert_near((of_encoding, of_weights), *both(reference.merf_backward, encodings, weights, *LIMITS, count, 4 * gradient, None))


def test_nan_stays_in_its_sample(emulated):
    rows, field = 100, ngp_field("cpu")
    encoding, directions, raw, spoilt = torch.randn(rows, 32).half(), made(rows, "cpu")[1], halves(rows, 4), halves(rows, 4)
    call(emulated.ngp, encoding, directions, ngp_weights(field), 0.0, rows, None, raw)
    encoding[37, 5] = torch.nan
    call(emulated.ngp, encoding, directions, ngp_weights(field), 0.0, rows, None, spoilt)
    assert spoilt[37].isnan().all()
    others = torch.arange(rows) != 37
    assert torch.equal(spoilt[others], raw[others])
