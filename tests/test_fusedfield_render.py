"""Whole pictures in one launch, against the same samples taken a few at a time: the twin, and the renderer's rounds."""

import pytest
import torch

import fusedfield
import raymarching
from fusedfield import reference
from nerf.samples import Rays
from test_fusedfield import BOUND, SEED, grid_arguments, half_field, ngp_field, ngp_weights, relative

RAYS = 700
MARCH = {"bound": BOUND, "cascades": 2, "grid_size": 32, "contract": False, "dt_gamma": 1 / 256, "max_steps": 128}
CONTRACTED = {**MARCH, "contract": True}
T_THRESH = 1e-4


def rays_and_cells(rays, device):
    """Rays from around the cube, of which some miss it, one is NaN and one starts inside; and cells of which a third is occupied."""
    generator = torch.Generator().manual_seed(SEED + rays)
    origins = torch.nn.functional.normalize(torch.randn(rays, 3, generator=generator), dim=1) * 3.5
    directions = torch.nn.functional.normalize(torch.randn(rays, 3, generator=generator) * 0.5 - origins / 3, dim=1)
    if rays > 2:
        origins[0], directions[1] = 0.1, torch.nan
    cells = torch.rand(MARCH["cascades"] * MARCH["grid_size"] ** 3, generator=generator)
    origins, directions, cells = origins.to(device), directions.to(device), cells.to(device)
    box = torch.tensor([-BOUND] * 3 + [BOUND] * 3, device=device)
    near, far = raymarching.near_far_from_aabb(origins, directions, box, 0.05)
    return (origins, directions, near, far), raymarching.packbits(cells, torch.full((1,), 0.67, device=device))


def test_twin_is_what_the_renderer_does_in_rounds(make_trainer):
    model = make_trainer().model
    field = model.field
    (origins, directions, near, far), bits = rays_and_cells(RAYS, "cpu")
    torch.nn.init.uniform_(field.grid.table, -0.5, 0.5)
    model.sampler.grid.bits.copy_(bits)
    field.half = False
    rays = Rays(origins, directions, near, far, torch.zeros(RAYS, dtype=torch.int64), torch.tensor([RAYS], dtype=torch.int32))
    assert field.render_rays(rays, bits, model.sampler.march, T_THRESH) is None  # on a CPU there is no kernel for it
    with torch.no_grad():
        ours = fusedfield.ngp_render(
            origins, directions, near, far, bits, field.grid.table, field.grid.offsets, field.grid.resolutions, field.bound, ngp_weights(field),
            model.sampler.march, model.render.options.T_thresh, field.density_start,
        )  # fmt: skip
        rounds = model.render.composite(rays)
    for mine, theirs in zip(ours, rounds, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert (ours[1] > 0.5).sum() > RAYS / 4 and (ours[1] == 0).any()


@pytest.mark.parametrize("change", [{"grid_size": 33}, {"dt_gamma": -1.0}, {"cascades": 1}])
def test_settings_that_do_not_fit_are_named(change):
    given, bits = rays_and_cells(4, "cpu")
    field = ngp_field("cpu")
    with pytest.raises(ValueError, match=next(iter(change)) if "cascades" not in change else "bitfield"):
        fusedfield.ngp_render(*given, bits, *grid_arguments(field), ngp_weights(field), {**MARCH, **change}, T_THRESH)


@pytest.mark.gpu
@pytest.mark.parametrize("march", [MARCH, CONTRACTED], ids=["plain", "contracted"])
@pytest.mark.parametrize("rays", [0, 1, 17, RAYS, 20_000])
def test_render_is_its_twin(gpu, march, rays):
    given, bits = rays_and_cells(rays, gpu)
    field = ngp_field(gpu)
    weights = ngp_weights(field)
    for start, T_thresh in ((0.0, T_THRESH), (2.5, 0.05)):
        settings = start, *march.values(), T_thresh
        for dtype in (torch.float16, torch.float32):
            table = grid_arguments(field, dtype)
            ours = fusedfield.ngp_render(*given, bits, *table, weights, march, T_thresh, start)
            plain = reference.ngp_render(*given, bits, *table, weights, *settings)
            truth = on_the_cpu(given, bits, table, weights, settings)
            for mine, theirs, exact in zip(ours, plain, truth, strict=True):
                assert mine.dtype == torch.float32 and mine.shape == theirs.shape
                if rays:
                    seen = exact.isfinite()
                    assert torch.equal(mine.cpu().isfinite(), seen)
                    assert relative(torch.where(seen, mine.cpu(), 0), torch.where(seen, exact, 0)) < 1e-2


def on_the_cpu(given, bits, table, weights, settings):
    """The twin's picture in float32."""
    table = table[0].cpu().float(), table[1].cpu(), table[2].cpu(), table[3]
    return [part.double() for part in reference.ngp_render(*(ray.cpu() for ray in given), bits.cpu(), *table, [weight.cpu() for weight in weights], *settings)]


@pytest.mark.gpu
def test_a_picture_is_the_same_in_rounds_and_at_once(gpu, make_trainer):
    from conftest import advance

    trainer = make_trainer(device="cuda")
    advance(trainer, 200)
    render, field = trainer.model.render, trainer.model.field
    pictures = {}
    for fused in (True, False):
        field.fused = fused
        with torch.no_grad():
            pictures[fused] = render.picture(trainer.scene.cameras, int(trainer.scene.val[0]))
    field.fused = True
    for at_once, in_rounds in zip(pictures[True], pictures[False], strict=True):
        assert relative(at_once, in_rounds.cpu().double()) < 5e-3


@pytest.mark.gpu
def test_rays_can_be_recorded(gpu):
    """Nothing waits for the host: the launch can be part of a CUDA graph."""
    given, bits = rays_and_cells(RAYS, gpu)
    field = half_field("ngp", gpu)
    arguments = *given, bits, *grid_arguments(field, torch.float16), ngp_weights(field), MARCH, T_THRESH
    expected = fusedfield.ngp_render(*arguments)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
        recorded = fusedfield.ngp_render(*arguments)
    for part in recorded:
        part.fill_(7)
    graph.replay()
    torch.cuda.synchronize()
    for mine, theirs in zip(recorded, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)
