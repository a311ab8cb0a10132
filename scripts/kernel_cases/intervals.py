"""The measured calls of sampling by proposals, with as many samples a ray as -O2 has: 256 and 96 of the proposals, 48 of the field."""

import torch

import raysampling

from .cases import FLOAT, HALF, case

COARSE, MIDDLE, FINE = 256, 96, 48
RAY = 8 * FLOAT  # origin, direction, near, far
SAMPLE = 9 * FLOAT  # position, direction, t, dt, ray_index


def interval_cases(work):
    """Each has N rays, as many as give the work's number of samples."""
    rays = rays_of(work, FINE)
    edges = uneven_edges(rays, FINE)
    place = edges, *rays
    yield case(
        raysampling, f"place_samples, {FINE} a ray", lambda: raysampling.place_samples(*place, contract=True, last_open=True),
        *per_ray(rays, FLOAT * (FINE + 1) + RAY + SAMPLE * FINE),
    )  # fmt: skip
    rays = rays_of(work, COARSE)
    coarse = even_edges(rays, COARSE), log_density(rays, COARSE), *rays[2:], noise_of(rays), MIDDLE
    yield case(
        raysampling, f"resample, {COARSE} to {MIDDLE}", lambda: raysampling.resample(*coarse),
        *per_ray(rays, FLOAT * (COARSE + 1 + MIDDLE + 1 + COARSE + 3) + HALF * COARSE),
    )  # fmt: skip
    rays = rays_of(work, MIDDLE)
    weights = torch.rand(len(rays[0]), FINE, device=rays[0].device) / FINE
    loss = uneven_edges(rays, FINE), weights, uneven_edges(rays, MIDDLE), log_density(rays, MIDDLE), *rays[2:]
    yield case(
        raysampling, f"interlevel_loss, {FINE} on {MIDDLE}", lambda: raysampling.interlevel_loss(*loss),
        *per_ray(rays, FLOAT * (FINE + 1 + FINE + MIDDLE + 1 + MIDDLE + 2) + HALF * MIDDLE),
    )  # fmt: skip


def rays_of(work, intervals):
    """(origins, directions, near, far, count) of the work's rays, in turn, so many that they have its number of samples; one at least."""
    given = work.march_arguments[:4]
    chosen = torch.arange(max(1, len(work.t) // intervals), device=work.t.device) % len(given[0])
    return *(tensor.index_select(0, chosen) for tensor in given), torch.full((1,), len(chosen), dtype=torch.int32, device=work.t.device)


def even_edges(rays, intervals):
    """[N, intervals + 1], those of a first proposal."""
    return torch.linspace(0, 1, intervals + 1, device=rays[0].device).repeat(len(rays[0]), 1)


def uneven_edges(rays, intervals):
    """[N, intervals + 1], as a proposal of MIDDLE even intervals and uneven density leaves them."""
    return raysampling.resample(even_edges(rays, MIDDLE), log_density(rays, MIDDLE), *rays[2:], noise_of(rays), intervals)[0]


def log_density(rays, intervals):
    """[N, intervals] half: air but for some intervals."""
    return (4 * torch.randn(len(rays[0]), intervals, device=rays[0].device) - 4).half()


def noise_of(rays):
    return torch.rand(len(rays[0]), device=rays[0].device)


def per_ray(rays, count):
    """The bytes of all rays, and their formula."""
    return count * len(rays[0]), f"{count} N"
