"""Activations and compositing against the literal formula, ray by ray in double."""

import pytest
import torch

from nerf import volume
from nerf.losses import opacity_entropy, pixel_loss
from nerf.samples import Packing, Samples

COUNTS = [3, 0, 5, 1, 7]


def packed(seed=0, padding=4):
    generator = torch.Generator().manual_seed(seed)
    total = sum(COUNTS)
    first = torch.tensor([sum(COUNTS[:k]) for k in range(len(COUNTS))])
    rays = torch.stack([first, torch.tensor(COUNTS)], dim=1).int()
    t = torch.cat([torch.rand(n, generator=generator).sort().values + 1 for n in COUNTS] + [torch.zeros(padding)])
    dt = torch.cat([torch.rand(total, generator=generator) * 0.3 + 0.05, torch.zeros(padding)])
    m = total + padding
    index = torch.cat([torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS)), torch.full((padding,), -1)]).int()
    samples = Samples(torch.zeros(m, 3), torch.zeros(m, 3), t, dt, index)
    raw = torch.randn(m, 4, generator=generator)
    return raw, samples, Packing(rays, torch.tensor([total, len(COUNTS), total], dtype=torch.int32))


def literal(raw, samples, packing):
    """The quadrature, one sample after another."""
    colours, opacities, depths, weights = [], [], [], [raw.new_zeros(()) for _ in raw]
    for first, count in packing.rays.tolist():
        light, colour, depth = raw.new_ones(()), raw.new_zeros(3), raw.new_zeros(())
        for i in range(first, first + count):
            alpha = 1 - torch.exp(-torch.exp(raw[i, 0]) * samples.dt[i].double())
            weights[i] = light * alpha
            colour = colour + weights[i] * torch.sigmoid(raw[i, 1:])
            depth = depth + weights[i] * samples.t[i].double()
            light = light * (1 - alpha)
        colours.append(colour), opacities.append(1 - light), depths.append(depth)
    return torch.stack(colours), torch.stack(opacities), torch.stack(depths), torch.stack(weights)


def test_compositing_and_its_gradient_are_the_formula():
    raw, samples, packing = packed()
    ours, exact = raw.clone().requires_grad_(), raw.double().requires_grad_()
    result, expected = volume.composite(ours, samples, packing, 0.0), literal(exact, samples, packing)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(value.shape, generator=generator) for value in result]
    for value, wanted in zip(result, expected):
        torch.testing.assert_close(value, wanted.float(), rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(result, ours, cotangents)
    (wanted,) = torch.autograd.grad(expected, exact, [c.double() for c in cotangents])
    torch.testing.assert_close(gradient, wanted.float(), rtol=1e-3, atol=1e-5)


def test_weights_sum_to_what_is_absorbed_and_an_empty_ray_is_nothing():
    raw, samples, packing = packed()
    seen = volume.composite(raw, samples, packing, 0.0)
    through = torch.exp(-torch.exp(raw[:, 0]) * samples.dt)
    for r, (first, count) in enumerate(packing.rays.tolist()):
        assert seen.weights[first : first + count].sum().item() == pytest.approx(1 - through[first : first + count].prod().item(), abs=1e-5)
        assert seen.opacity[r].item() == pytest.approx(seen.weights[first : first + count].sum().item(), abs=1e-5)
    assert seen.features[1].abs().sum() == seen.opacity[1] == seen.depth[1] == 0
    assert (seen.weights[samples.ray_index < 0] == 0).all()


def test_density_neither_clamps_nor_overflows_its_gradient():
    logit = torch.tensor([-40.0, 0.0, 20.0, 100.0], requires_grad=True)
    sigma = volume.density(logit)
    sigma.sum().backward()
    assert sigma[2].item() == pytest.approx(torch.tensor(20.0).exp().item())
    assert torch.isfinite(logit.grad).all()
    assert logit.grad[3] == torch.tensor(15.0).exp()


def test_an_opaque_wall_gives_finite_gradients():
    raw, samples, packing = packed()
    raw[:, 0] = 200.0  # density is infinite
    raw.requires_grad_()
    seen = volume.composite(raw, samples, packing, 1e-4)
    seen.features.sum().backward()
    assert torch.isfinite(raw.grad).all()
    torch.testing.assert_close(seen.opacity, torch.tensor([1.0, 0, 1, 1, 1]))


def test_losses_ignore_rays_that_are_left_out():
    kept = torch.tensor([True, True, False])
    colour = torch.tensor([[0.5, 0.5, 0.5], [1.0, 1.0, 1.0], [9.0, 9.0, 9.0]])
    assert pixel_loss(colour, torch.zeros(3, 3), kept).item() == pytest.approx((0.25 + 1) / 2)
    assert pixel_loss(colour, torch.zeros(3, 3), torch.zeros(3, dtype=torch.bool)) == 0
    assert opacity_entropy(torch.tensor([0.5, 1.0, 0.5]), kept).item() == pytest.approx(0.5, abs=1e-3)
