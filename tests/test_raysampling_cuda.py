"""Sampling by proposals on a GPU: many rays against the CPU form, the current stream and device, and graphs."""

import pytest
import torch

import raysampling
from conftest import no_host_waits
from test_raysampling import level_pair, on_the_way, pick, problem, uniform

pytestmark = pytest.mark.gpu


def run(placing, levels, noise):
    """All results of the three operators, by name."""
    placed = raysampling.place_samples(**placing, contract=True, last_open=True)
    new = raysampling.resample(levels["edges"], levels["logit"], **on_the_way(levels), noise=noise, intervals=40)
    names = ("positions", "directions", "t", "dt", "ray_index", "new_edges", "weights", "gradient", "loss")
    return dict(zip(names, (*placed, *new, *raysampling.interlevel_loss(**levels)), strict=True))


def inputs(rays, device="cpu", logits=torch.float32, used=None):
    placing = problem(rays, 48, used=used, device=device)
    return placing, level_pair(rays, 48, 96, logits=logits, used=used, device=device), uniform(rays).to(device)


def assert_same(ours, theirs):
    for name, value in ours.items():
        expected = theirs[name].cpu()
        rtol, atol = {"gradient": (2e-3, 1e-4 * expected.abs().max().item() if expected.numel() else 0), "new_edges": (0, 1e-4)}.get(
            name, (1e-4, 5e-6)
        )
        torch.testing.assert_close(value.cpu(), expected, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("logits", [torch.float32, torch.float16])
@pytest.mark.parametrize("rays", [1, 5, 5461, 20_001])
def test_same_as_the_cpu(rays, logits):
    used = max(1, rays - rays // 10)
    first, second = (run(*inputs(rays, "cuda", logits, used)) for _ in range(2))
    assert_same(first, run(*inputs(rays, "cpu", logits, used)))
    for name, value in first.items():
        assert name == "loss" or torch.equal(value, second[name]), name


def test_second_stream_is_honoured_without_waiting():
    """The inputs are written on the stream after a pause: a kernel on another stream would read them too early."""
    placing, levels, noise = inputs(500, "cuda")
    late_placing, late_levels = ({name: torch.zeros_like(value) for name, value in data.items()} for data in (placing, levels))
    late_noise, stream = torch.zeros_like(noise), torch.cuda.Stream()
    expected = run(placing, levels, noise)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), no_host_waits():
        torch.cuda._sleep(100_000_000)
        for late, data in ((late_placing, placing), (late_levels, levels)):
            for name, value in data.items():
                late[name].copy_(value)
        late_noise.copy_(noise)
        ours = run(late_placing, late_levels, late_noise)
    torch.cuda.synchronize()
    assert_same(ours, {name: value.cpu() for name, value in expected.items()})


def test_graph_is_captured_and_replayed():
    """Other values, counts and annealing in the same memory; what a replay before has left must not show."""
    placing, levels, noise = inputs(600, "cuda")
    anneal = torch.ones(1, device="cuda")
    given = pick(levels, "edges", "logit", "near", "far", "count")
    run(placing, levels, noise)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(placing, levels, noise)
        annealed, _ = raysampling.resample(*given.values(), noise, 40, anneal=anneal)
    for step, used in enumerate((600, 123, 0, 400)):
        for data, other in ((placing, problem(600, 48, used=used, seed=step)), (levels, level_pair(600, 48, 96, used=used))):
            for name, value in other.items():
                data[name].copy_(value)
        levels["logit"].add_(0.3 * step)
        noise.copy_(uniform(600, seed=step))
        anneal.fill_(step / 3)
        graph.replay()
        assert_same(captured, run(placing, levels, noise))
        assert torch.equal(annealed, raysampling.resample(*given.values(), noise, 40, anneal=anneal)[0])
        assert (captured["loss"].item() > 0) == (used > 0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_second_device_is_honoured():
    ours = run(*inputs(300, "cuda:1"))
    assert torch.cuda.current_device() == 0 and all(value.device.index == 1 for value in ours.values())
    assert_same(ours, run(*inputs(300)))


def test_mixed_devices_and_float64_are_named():
    placing, levels, noise = inputs(8, "cuda")
    with pytest.raises(ValueError, match="^near is on"):
        raysampling.place_samples(**{**placing, "near": placing["near"].cpu()}, contract=True, last_open=True)
    with pytest.raises(ValueError, match="^noise is on"):
        run(placing, levels, noise.cpu())
    with pytest.raises(ValueError, match="^weights_ref is on"):
        raysampling.interlevel_loss(**{**levels, "weights_ref": levels["weights_ref"].cpu()})
    with pytest.raises(TypeError, match="^edges must be float32 or, on the CPU"):
        raysampling.place_samples(**{**placing, "edges": placing["edges"].double()}, contract=True, last_open=True)
