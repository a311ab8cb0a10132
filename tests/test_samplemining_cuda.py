"""The choice of hard samples on a GPU: the CPU form's rows, the current stream and device, graphs, and what lies beside the usual path."""

import math

import pytest
import torch

from conftest import no_host_waits
from samplemining import take_rows, thin_samples
from test_samplemining import LAWS, SCORES, log_normal, thin, uniform, with_scores

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("columns", [1, 3, 4, 8, 16])
@pytest.mark.parametrize("rows", [1, 31, 2047, 2048, 2049, 100_003])
@pytest.mark.parametrize("law", LAWS)
def test_same_rows_as_the_cpu(law, rows, columns):
    delta = with_scores(log_normal(1.5, rows) * (uniform(rows, seed=3) < 0.8), columns)
    settings = {"law": law, "alpha": 0.5, "used": rows - rows // 10, "room": rows}
    index, gradient, counts, tau = thin(delta, device="cuda", **settings)
    expected_index, expected_gradient, expected_counts, expected_tau = thin(delta, **settings)
    assert tau == pytest.approx(expected_tau, rel=1e-5)
    ours, theirs = set(index[: counts[0]].tolist()), set(expected_index[: expected_counts[0]].tolist())
    assert len(ours ^ theirs) <= 1e-3 * len(theirs)
    if ours == theirs:
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", SCORES)
def test_same_rows_of_any_scores(name):
    delta = with_scores(SCORES[name])
    for law in ("exponential", "linear"):
        index, _, counts, _ = thin(delta, device="cuda", law=law)
        expected, _, expected_counts, _ = thin(delta, law=law)
        ours, theirs = set(index[: counts[0]].tolist()), set(expected[: expected_counts[0]].tolist())
        assert len(ours ^ theirs) <= max(1, 1e-3 * len(theirs))


def test_a_million_rows_and_a_delta_that_is_not_aligned():
    delta, noise = with_scores(log_normal(2, 2**20)), uniform(2**20)
    index, gradient, (kept, drawn), _ = thin(delta, noise, device="cuda", room=2**19)
    assert kept == drawn and (index[:kept].diff() > 0).all() and torch.equal(gradient[:kept], delta[index[:kept]])
    shifted = torch.cat([torch.zeros(1), delta.flatten()]).cuda()[1:].view(-1, 4)
    count, tau = torch.tensor([2**20], dtype=torch.int32, device="cuda"), torch.ones(1, device="cuda")
    again, *_ = thin_samples(shifted, noise.cuda(), count, tau, 2**19)
    assert torch.equal(again.cpu(), index)


def test_second_stream_is_honoured_without_waiting():
    """The gradients are written on the stream after a pause: a kernel on another stream would read them too early."""
    delta, noise = with_scores(log_normal(1, 100_000)).cuda(), uniform(100_000).cuda()
    count, tau = torch.tensor([100_000], dtype=torch.int32, device="cuda"), torch.ones(1, device="cuda")
    late, stream = torch.zeros_like(delta), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), no_host_waits():
        torch.cuda._sleep(100_000_000)
        late.copy_(delta)
        index, _, counts = thin_samples(late, noise, count, tau, 60_000)
        (taken,) = take_rows([late], index)
    torch.cuda.synchronize()
    expected, _, expected_counts = thin_samples(delta, noise, count, torch.ones_like(tau), 60_000)
    assert torch.equal(index, expected) and torch.equal(counts, expected_counts) and torch.equal(taken, delta[expected])


@pytest.mark.parametrize("law", LAWS)
def test_graph_is_captured_and_replayed(law):
    delta, noise = torch.zeros(50_000, 4, device="cuda"), torch.zeros(50_000, device="cuda")
    count, tau = torch.zeros(1, dtype=torch.int32, device="cuda"), torch.ones(1, device="cuda")
    thin_samples(delta, noise, count, tau, 30_000, law=law)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        index, gradient, counts = thin_samples(delta, noise, count, tau, 30_000, law=law)
        (taken,) = take_rows([delta], index)
    expected_tau = torch.ones(1, device="cuda")
    for step, used in enumerate((50_000, 20_000, 0)):
        delta.copy_(with_scores(log_normal(1, 50_000, seed=step)))
        noise.copy_(uniform(50_000, seed=step))
        count.fill_(used)
        graph.replay()
        expected = thin_samples(delta, noise, count, expected_tau, 30_000, law=law)
        assert torch.equal(index, expected[0]) and torch.equal(gradient, expected[1]) and torch.equal(counts, expected[2])
        assert torch.equal(tau, expected_tau) and torch.equal(taken, delta[index])


@pytest.mark.parametrize("rows", [0, 1, 255, 256, 257, 10_000])
def test_rows_are_taken(rows):
    tensors = [torch.rand(500, 3), torch.rand(500), torch.rand(500, 32).half(), torch.arange(500), torch.rand(500, 8).T.contiguous().T]
    tensors += [torch.rand(1501)[1:].view(500, 3), torch.rand(4001).half()[1:].view(500, 8), torch.rand(2001)[1:].view(500, 4)]
    index = torch.randint(500, (rows,), generator=torch.Generator().manual_seed(4))
    on_gpu = [tensor.cuda() for tensor in tensors[:5]]
    whole = [torch.cat([torch.zeros(1, dtype=tensor.dtype), tensor.flatten()]).cuda() for tensor in tensors[5:]]
    on_gpu += [flat[1:].view(tensor.shape) for flat, tensor in zip(whole, tensors[5:], strict=True)]
    for tensor, taken in zip(tensors, take_rows(on_gpu, index.cuda()), strict=True):
        assert torch.equal(taken.cpu(), tensor[index])


def test_rows_that_are_not_there_are_zero():
    tensor = torch.full((5, 3), math.nan)
    tensor[1] = 7
    (taken,) = take_rows([tensor.cuda()], torch.tensor([1, -1, 5, 2**40], device="cuda"))
    assert torch.equal(taken.cpu(), torch.tensor([[7.0] * 3, [0.0] * 3, [0.0] * 3, [0.0] * 3]))
    assert not take_rows([torch.rand(0, 3).cuda()], torch.tensor([0], device="cuda"))[0].any()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_second_device_is_honoured():
    delta = with_scores(log_normal(1))
    index, *_ = thin(delta, device="cuda:1")
    assert torch.equal(index, thin(delta, device="cuda:0")[0]) and torch.cuda.current_device() == 0
    (taken,) = take_rows([delta.to("cuda:1")], index.to("cuda:1"))
    assert taken.device == torch.device("cuda:1") and torch.equal(taken.cpu(), delta[index])


def test_mixed_devices_are_named():
    count, tau = torch.tensor([8], dtype=torch.int32, device="cuda"), torch.ones(1, device="cuda")
    with pytest.raises(ValueError, match="noise is on"):
        thin_samples(torch.rand(8, 4, device="cuda"), torch.rand(8), count, tau, 8)
    with pytest.raises(ValueError, match=r"tensors\[0\] is on"):
        take_rows([torch.rand(8)], torch.tensor([0], device="cuda"))
