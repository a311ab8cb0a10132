"""Losses of weights on packed rays, against literal loops over the formulas of the papers."""

import pytest
import torch

from nerf import losses


def packed(lengths, seed=0, padding=3, gaps=False):
    """(weights [M], spacing [M, 2], ray_index [M]) of rays with so many samples; intervals ascend, and touch unless there are gaps."""
    generator = torch.Generator().manual_seed(seed)
    spacing, index = [], []
    for ray, length in enumerate(lengths):
        edges = torch.rand(2 * length if gaps else length + 1, generator=generator).sort().values if length else torch.zeros(0)
        spacing.append(edges.view(-1, 2) if gaps or not length else torch.stack([edges[:-1], edges[1:]], 1))
        index += [ray] * length
    weights = torch.rand(len(index) + padding, generator=generator) / 10
    spacing = torch.cat([spacing_of_ray.view(-1, 2) for spacing_of_ray in spacing] + [torch.full((padding, 2), float("nan"))])
    return weights, spacing, torch.tensor(index + [-1] * padding, dtype=torch.int32)


def literal_distortion(weights, spacing, ray_index, kept):
    total = 0.0
    for ray in kept.nonzero()[:, 0].tolist():
        rows = (ray_index == ray).nonzero()[:, 0].tolist()
        for i in rows:
            total += weights[i] ** 2 * (spacing[i, 1] - spacing[i, 0]) / 3
            for j in rows:
                total += weights[i] * weights[j] * abs(spacing[i].mean() - spacing[j].mean())
    return total / max(int(kept.sum()), 1)


def literal_interlevel(weights, spacing, ray_index, proposal_weights, proposal_spacing, proposal_ray_index, kept):
    total = 0.0
    for i in range(len(weights)):
        if ray_index[i] < 0 or not kept[ray_index[i]]:
            continue
        bound = 0.0
        for j in (proposal_ray_index == ray_index[i]).nonzero()[:, 0].tolist():
            if proposal_spacing[j, 0] < spacing[i, 1] and proposal_spacing[j, 1] > spacing[i, 0]:
                bound = bound + proposal_weights[j]
        total += max(0, weights[i] - bound) ** 2 / (weights[i] + 1e-7)
    return total / max(int(kept.sum()), 1)


LENGTHS, KEPT = [4, 0, 1, 7, 5], torch.tensor([True, True, True, True, False])


@pytest.mark.parametrize("gaps", [False, True])
def test_distortion_is_the_double_sum(gaps):
    weights, spacing, ray_index = packed(LENGTHS, gaps=gaps)
    ours, theirs = weights.clone().requires_grad_(), weights.double().requires_grad_()
    loss, expected = losses.distortion(ours, spacing, ray_index, KEPT), literal_distortion(theirs, spacing.double(), ray_index, KEPT)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected.float())
    torch.testing.assert_close(torch.autograd.grad(loss, ours)[0], torch.autograd.grad(expected, theirs)[0].float())


def test_distortion_moves_the_spacing_too():
    weights, spacing, ray_index = packed(LENGTHS, padding=0, gaps=True)
    weights, spacing = weights.double(), spacing.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda spacing: losses.distortion(weights, spacing, ray_index, KEPT), spacing)


@pytest.mark.parametrize("proposal_lengths", [[3, 2, 5, 1, 4], [40, 40, 40, 40, 40]])
def test_interlevel_is_the_sum_over_what_overlaps(proposal_lengths):
    weights, spacing, ray_index = packed(LENGTHS)
    proposal = packed(proposal_lengths, seed=1, padding=2)
    ours, theirs = proposal[0].clone().requires_grad_(), proposal[0].double().requires_grad_()
    weights.requires_grad_()
    loss = losses.interlevel(weights, spacing, ray_index, ours, *proposal[1:], KEPT)
    expected = literal_interlevel(weights.detach().double(), spacing, ray_index, theirs, *proposal[1:], KEPT)
    assert loss.dtype == torch.float32 and loss > 0
    torch.testing.assert_close(loss, expected.float())
    torch.testing.assert_close(torch.autograd.grad(loss, ours)[0], torch.autograd.grad(expected, theirs)[0].float())


def test_interlevel_of_intervals_that_share_edges():
    """What touches in a point alone does not count: the proposal that equals the weights has no loss, one shifted by an interval has."""
    _, spacing, ray_index = packed([6, 6], padding=1)
    weights = torch.tensor([0.0, 0.1, 0.5, 0.3, 0.0, 0.0] * 2 + [9.0])
    kept = torch.ones(2, dtype=torch.bool)
    assert losses.interlevel(weights, spacing, ray_index, weights, spacing, ray_index, kept) == 0
    shifted = torch.tensor([0.0, 0.0, 0.1, 0.5, 0.3, 0.0] * 2 + [9.0])
    expected = 0.1**2 / 0.1 + 0.4**2 / 0.5
    torch.testing.assert_close(
        losses.interlevel(weights, spacing, ray_index, shifted, spacing, ray_index, kept), torch.tensor(expected), rtol=1e-5, atol=0
    )


def test_padding_may_lie_between_rays():
    holes = packed([3, 4, 5], padding=0)
    holes[1][3:7], holes[2][3:7] = float("nan"), -1
    without = [torch.cat([values[:3], values[7:]]) for values in holes]
    proposal, kept = packed([6, 6, 6], seed=2), torch.ones(3, dtype=torch.bool)
    assert losses.distortion(*holes, kept) == losses.distortion(*without, kept)
    expected = losses.interlevel(*without, *proposal, kept)
    assert losses.interlevel(*holes, *proposal, kept) == expected > 0
    assert losses.interlevel(*proposal, *holes, kept) == losses.interlevel(*proposal, *without, kept) > 0


def test_nothing_in_use_gives_zero_and_no_gradient():
    for lengths, kept in (([], KEPT), (LENGTHS, KEPT & False), ([], KEPT[:0])):
        weights, spacing, ray_index = packed(lengths, padding=2)
        weights.requires_grad_()
        distortion = losses.distortion(weights, spacing, ray_index, kept)
        interlevel = losses.interlevel(weights, spacing, ray_index, weights, spacing, ray_index, kept)
        assert distortion == 0 and interlevel == 0
        assert not torch.autograd.grad(distortion + interlevel, weights)[0].any()
    empty = torch.zeros(0), torch.zeros(0, 2), torch.zeros(0, dtype=torch.int32)
    assert losses.distortion(*empty, KEPT) == 0 and losses.interlevel(*empty, *empty, KEPT) == 0


def test_a_ray_keeps_its_digits_among_many():
    """The last of many rays: its part of the sums over all rows is small."""
    weights, spacing, ray_index = packed([48] * 20000, padding=0)
    kept = torch.arange(20000) == 19999
    ours = losses.distortion(weights, spacing, ray_index, kept)
    one = losses.distortion(weights[-48:], spacing[-48:], torch.zeros(48, dtype=torch.int32), kept[-1:])
    torch.testing.assert_close(ours, one, rtol=1e-6, atol=0)
