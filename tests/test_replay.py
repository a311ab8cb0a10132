"""Work that is recorded and replayed: the same as work that is run."""

import pytest
import torch

from nerf.errors import UserError
from nerf.replay import WARM_RUNS, Replay


def test_without_a_gpu_or_switched_off_the_work_is_run_as_it_is():
    for replay in (Replay(torch.device("cpu"), True, []), Replay(torch.device("cuda"), False, [])):
        runs = []
        for _ in range(5):
            replay("work", lambda runs=runs: runs.append(1))
        assert len(runs) == 5 and replay.memory() == 0
        replay.forget()


@pytest.fixture
def counter():
    """(replay, work, total, generator): each run of work adds a random row of `size` to total."""
    generator = torch.Generator("cuda").manual_seed(0)
    replay, total = Replay(torch.device("cuda"), True, [generator]), torch.zeros(1, device="cuda")

    def work(size=1000):
        total.add_(torch.rand(size, device="cuda", generator=generator).sum())

    return replay, work, total, generator


@pytest.mark.gpu
def test_replays_draw_what_runs_would_have_drawn(counter):
    replay, work, total, generator = counter
    for _ in range(WARM_RUNS + 4):
        replay("work", work)
    replayed, state = total.clone(), generator.get_state()
    total.zero_()
    generator.manual_seed(0)
    for _ in range(WARM_RUNS + 4):
        work()
    assert torch.equal(replayed, total) and torch.equal(state, generator.get_state())
    assert replay.memory() > 0


@pytest.mark.gpu
def test_the_first_replay_does_so_too_where_the_device_is_late(counter, monkeypatch):
    """torch zeroes the generator's offset on the stream of the recording: here so late that a replay could have set it already, and not yet read it."""
    replay, work, total, generator = counter
    begin = torch.cuda.CUDAGraph.capture_begin

    def begin_late(*arguments, **options):
        torch.cuda._sleep(20_000_000)  # cycles
        begin(*arguments, **options)

    def work_late():
        torch.cuda._sleep(60_000_000)
        work()

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", begin_late)
    for _ in range(WARM_RUNS + 1):
        replay("work", work_late)
    replayed = total.clone()
    total.zero_()
    generator.manual_seed(0)
    for _ in range(WARM_RUNS + 1):
        work()
    assert torch.equal(replayed, total)


@pytest.mark.gpu
def test_each_variant_is_recorded_and_what_is_forgotten_is_recorded_again(counter):
    replay, work, total, _ = counter
    for size in (10, 1000, 10, 1000):
        for _ in range(WARM_RUNS + 2):
            replay("work", lambda size=size: work(size), size)
    assert len(replay.graphs) == 2
    before = total.item()
    replay.forget()
    assert not replay.graphs and replay.memory() == 0
    replay("work", lambda: work(10), 10)
    assert len(replay.graphs) == 1 and 0 < total.item() - before < 10


@pytest.mark.gpu
def test_work_that_waits_cannot_be_recorded_and_says_so(counter):
    replay, _, total, _ = counter
    with pytest.raises(UserError, match="could not be recorded as a CUDA graph .* --no-graph"):
        for _ in range(WARM_RUNS + 1):
            replay("waits", lambda: total.item())
