"""The measured calls, each with its PyTorch twin and the bytes that it must move.

Compulsory bytes count every input and every output once, whatever the caches do; `gathered` counts what is read from, or added to, the
entries of the hash grid on top, 2^D entries a sample and level, which caches serve in part. M samples, N rays, E table entries, L levels.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

import freqencoder
import gridencoder
import raymarching
import shencoder
from nerf.errors import UserError

FLOAT, HALF = 4, 2  # bytes
LEVELS, FEATURES, CORNERS = 16, 2, 8
CELLS = 2048  # of the finest level, a world unit of half side, as in the Instant-NGP field
SH_DEGREE, FREQUENCIES, CHANNELS = 4, 6, 3
FREQUENCY_COLUMNS = 3 + 2 * 3 * FREQUENCIES
T_THRESH = 1e-4
IMAGES, WIDTH, HEIGHT = 100, 800, 600


class Case(NamedTuple):
    """A call without arguments, its PyTorch twin, and its bytes with the formula that gave them."""

    name: str
    kernel: Callable
    twin: Callable
    bytes: int
    formula: str
    gathered: int = 0


def case(package, name, call, count, formula, gathered=0):
    """The Case of a call into a kernel package; its twin is the same call while the package's operators are those of reference.py.

    Raises:
        UserError: the package is not compiled, so that there is nothing to compare.
    """
    ops = package.ops
    if ops.kernels is ops.reference:
        raise UserError(f"{package.__name__} is not compiled: python scripts/doctor.py says why")

    def twin():
        compiled, ops.kernels = ops.kernels, ops.reference
        try:
            return call()
        finally:
            ops.kernels = compiled

    return Case(name, call, twin, count, formula, gathered)


def cases(work, log2_table_size):
    """Yields every Case; one at a time holds memory."""
    yield from grid_cases(work, log2_table_size)
    yield from direction_cases(work)
    yield from composite_cases(work)
    yield march_case(work)
    yield from ray_cases(len(work.t), work.t.device)


def finest_resolution(work):
    """Of the Instant-NGP field's grid over the work's box."""
    return round(CELLS * work.march["bound"])


def grid_cases(work, log2_table_size):
    """The hash grid, forward and gradient, half and float."""
    positions = work.unit_positions()
    encoder = gridencoder.GridEncoder(levels=LEVELS, features=FEATURES, finest_resolution=finest_resolution(work), log2_table_size=log2_table_size).to(positions.device)
    samples, entries, layout = len(positions), len(encoder.table), (encoder.offsets, encoder.resolutions)
    for dtype, size, label in ((torch.float16, HALF, "half"), (torch.float32, FLOAT, "float")):
        table = encoder.table.detach().to(dtype)
        columns = samples * LEVELS * FEATURES * size
        yield case(
            gridencoder, f"grid forward, {label}", lambda table=table: gridencoder.grid_encode_forward(positions, table, *layout),
            12 * samples + entries * FEATURES * size + columns, f"12 M + {size} F E + {size} L F M", CORNERS * columns,
        )  # fmt: skip
        grad = torch.randn(samples, LEVELS * FEATURES, device=positions.device).to(dtype)
        yield case(
            gridencoder, f"grid gradient, {label}", lambda grad=grad: gridencoder.grid_encode_backward(grad, positions, *layout, entries, FEATURES),
            12 * samples + columns + entries * FEATURES * FLOAT, f"12 M + {size} L F M + 4 F E", CORNERS * samples * LEVELS * FEATURES * FLOAT,
        )  # fmt: skip


def direction_cases(work):
    """Spherical harmonics and frequencies, forward and gradient."""
    directions, positions, samples = work.directions, work.positions, len(work.t)
    for dtype, size, label in ((torch.float16, HALF, "half"), (torch.float32, FLOAT, "float")):
        yield case(
            shencoder, f"SH {SH_DEGREE} forward, {label}", lambda dtype=dtype: shencoder.sh_encode_forward(directions, SH_DEGREE, dtype),
            samples * (12 + size * SH_DEGREE**2), f"12 M + {size} {SH_DEGREE**2} M",
        )  # fmt: skip
    grad = torch.randn(samples, SH_DEGREE**2, device=directions.device)
    yield case(
        shencoder, f"SH {SH_DEGREE} gradient, float", lambda: shencoder.sh_encode_backward(grad, directions, SH_DEGREE),
        samples * (24 + FLOAT * SH_DEGREE**2), f"24 M + 4 {SH_DEGREE**2} M",
    )  # fmt: skip
    yield case(
        freqencoder, f"frequency {FREQUENCIES} forward, float", lambda: freqencoder.freq_encode_forward(positions, FREQUENCIES, True, torch.float32),
        samples * (12 + FLOAT * FREQUENCY_COLUMNS), f"12 M + 4 {FREQUENCY_COLUMNS} M",
    )  # fmt: skip
    cotangent = torch.randn(samples, FREQUENCY_COLUMNS, device=positions.device)
    yield case(
        freqencoder, f"frequency {FREQUENCIES} gradient, float", lambda: freqencoder.freq_encode_backward(cotangent, positions, FREQUENCIES, True),
        samples * (24 + FLOAT * FREQUENCY_COLUMNS), f"24 M + 4 {FREQUENCY_COLUMNS} M",
    )  # fmt: skip


def composite_cases(work):
    """Compositing of three channels; the gradient comes from the pixels, opacities and depths, not from the weights."""
    samples, rays = len(work.t), len(work.rays)
    density = torch.rand(samples, device=work.t.device) * 10
    features = torch.rand(samples, CHANNELS, device=work.t.device)
    yield case(
        raymarching, "composite forward", lambda: raymarching.composite_rays_train(density, features, work.t, work.dt, work.rays, T_thresh=T_THRESH),
        samples * (16 + FLOAT * CHANNELS) + rays * (16 + FLOAT * CHANNELS), "16 M + 4 K M + 16 N + 4 K N",
    )  # fmt: skip
    inputs = density.requires_grad_(), features.requires_grad_()
    outputs = raymarching.composite_rays_train(*inputs, work.t, work.dt, work.rays, T_thresh=T_THRESH)[:3]
    grads = [torch.randn_like(output) for output in outputs]
    yield case(
        raymarching, "composite gradient", lambda: torch.autograd.grad(outputs, inputs, grads, retain_graph=True),
        samples * (16 + 2 * FLOAT * CHANNELS) + rays * (16 + FLOAT * CHANNELS), "16 M + 8 K M + 16 N + 4 K N",
    )  # fmt: skip


def march_case(work):
    """The march of a training step."""
    rays, bits = len(work.rays), work.march_arguments[-1]
    return case(
        raymarching, "march_rays_train", lambda: raymarching.march_rays_train(*work.march_arguments, **work.march),
        36 * len(work.t) + 44 * rays + len(bits), "36 M + 44 N + cells / 8",
    )  # fmt: skip


def ray_cases(count, device):
    """What is done to each cell or ray: here N is the size."""
    density, threshold = torch.rand(count, device=device), torch.full((1,), 0.5, device=device)
    yield case(raymarching, "packbits", lambda: raymarching.packbits(density, threshold), 4 * count + count // 8, "4 N + N / 8")
    cells = torch.randint(1024, (count, 3), dtype=torch.int32, device=device)
    yield case(raymarching, "morton3D", lambda: raymarching.morton3D(cells), 16 * count, "16 N")
    codes = raymarching.morton3D(cells)
    yield case(raymarching, "morton3D_invert", lambda: raymarching.morton3D_invert(codes), 16 * count, "16 N")
    origins = torch.rand(count, 3, device=device)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, device=device), dim=1)
    box = torch.tensor([-1.0, -1, -1, 1, 1, 1], device=device)
    yield case(raymarching, "near_far_from_aabb", lambda: raymarching.near_far_from_aabb(origins, directions, box, 0.05), 32 * count, "32 N")
    image = torch.randint(IMAGES, (count,), device=device)
    pixels = torch.rand(count, 2, device=device) * torch.tensor([WIDTH, HEIGHT], device=device)
    poses = torch.eye(3, 4, device=device).repeat(IMAGES, 1, 1)
    intrinsics = torch.tensor([WIDTH, WIDTH, WIDTH / 2, HEIGHT / 2], device=device).repeat(IMAGES, 1)
    distortion = torch.tensor([0.05, -0.02, 0, 0, 1e-3, 1e-3], device=device).repeat(IMAGES, 1)
    lens = torch.zeros(IMAGES, dtype=torch.int32, device=device)
    yield case(raymarching, "generate_rays", lambda: raymarching.generate_rays(image, pixels, poses, intrinsics, distortion, lens), 40 * count + 92 * IMAGES, "40 N + 92 images")  # fmt: skip
