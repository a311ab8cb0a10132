"""The optimiser on a GPU: nothing waits for the host, a step is captured in a graph, and devices are kept apart."""

import math

import pytest
import torch

from conftest import no_host_waits
from fusedadam import FusedAdam
from test_fusedadam import SEED, SHAPES, assert_same, give, held, make, random_tensors, run, step_number

pytestmark = pytest.mark.gpu


def test_step_and_schedule_do_not_wait():
    """The gradients are written on the stream after a pause: a kernel on another stream would read them too early."""
    (_, optimizer), (_, other) = make("cuda"), make("cuda")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    gradients = random_tensors(SHAPES, "cuda", SEED + 1)
    give(optimizer, [torch.zeros_like(gradient) for gradient in gradients])
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), no_host_waits():
        torch.cuda._sleep(100_000_000)
        give(optimizer, gradients)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()
    run(other, SHAPES, 1)
    assert_same(held(optimizer), held(other))
    assert optimizer.param_groups[0]["lr"].item() == pytest.approx(0.005)


def test_graph_is_captured_and_replayed():
    """Replays see new gradients, a new learning rate and the loss scale that earlier ones left, and equal steps without a graph."""
    (_, optimizer), (_, other) = (make("cuda", growth_interval=2) for _ in range(2))
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: 0.5**step) for each in (optimizer, other)]
    run(make("cuda")[1], SHAPES, 1)  # a kernel is loaded when it first runs, which has no place in a capture
    static = random_tensors(SHAPES, "cuda", SEED + 1)
    start = [tensor.clone() for tensor in held(optimizer)]
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        give(optimizer, static)
        optimizer.step()
        optimizer.zero_grad()
    assert_same(held(optimizer), start)
    for step in range(6):
        gradients = random_tensors(SHAPES, "cuda", SEED + 1 + step)
        if step == 4:
            gradients[0][0, 0] = math.nan
        for target, gradient in zip(static, gradients, strict=True):
            target.copy_(gradient)
        graph.replay()
        give(other, gradients)
        other.step()
        other.zero_grad()
        for schedule in schedules:
            schedule.step()
        assert_same(held(optimizer), held(other))
    assert optimizer.loss_scale.item() == other.loss_scale.item() == 512 and step_number(optimizer) == 5


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_second_device_is_honoured():
    (parameters, optimizer), (_, other) = make("cuda:1"), make("cpu")
    for each in (optimizer, other):
        run(each, SHAPES, 3)
    assert parameters[0].device == torch.device("cuda:1") and torch.cuda.current_device() == 0
    torch.testing.assert_close([tensor.cpu() for tensor in held(optimizer)], held(other), rtol=1e-3, atol=1e-5)


def test_state_moves_between_devices():
    parameters, optimizer = make("cpu")
    run(optimizer, SHAPES, 3)
    others, other = make("cuda", seed=SEED + 7)
    torch._foreach_copy_([parameter.detach() for parameter in others], [parameter.detach() for parameter in parameters])
    other.load_state_dict(optimizer.state_dict())
    assert_same([tensor.cpu() for tensor in held(other)], held(optimizer))


def test_mixed_devices_are_named():
    with pytest.raises(ValueError, match="parameter 1 of group 0 is on"):
        FusedAdam([torch.nn.Parameter(torch.rand(3, device=d)) for d in ("cuda", "cpu")], lr=0.1)
