"""One training step, without the host: draw rays, march, look, composite, learn, update. Nothing here waits for the device."""

from typing import NamedTuple

import torch

from nerf import losses, volume
from nerf.hsm import HardSampleMiner, MiningRule, loss_gradient
from nerf.rays import RayCount

HALF_SCALE = 2.0**16  # first loss scale in half precision; it halves when a gradient overflows
NEVER = 2**31 - 1


class StepNumbers(NamedTuple):
    """What a step tells; the order of the row that `TrainingStep.numbers` holds on the device."""

    loss: float  # mean over the rays, regularisers included
    squared_error: float  # mean of the pixels' squared error
    rays: float  # rays that were learned from
    samples: float  # B
    wanted: float  # samples before any ray was left out for lack of room
    hard: float  # b, the samples that had a graph
    tau: float  # unevenness of the scores (1 without mining)
    bad_step: float  # the first step whose loss was not finite, -1: none


class TrainingStep:
    """Everything that changes with a step, and the step.

    Args:
        field: nerf.fields module; sampler: has sample(rays, generator) -> (Samples, Packing); source: nerf.rays.RaySource.
        options: nerf.options.Options, resolved.
        device: torch.device.
    """

    def __init__(self, field, sampler, source, options, device):
        self.field, self.sampler, self.source, self.options = field, sampler, source, options
        self.generator = torch.Generator(device).manual_seed(options.seed)
        self.ray_count = RayCount(options.num_rays, options.adaptive_num_rays, source.capacity, sampler.capacity, device)
        self.optimizer = torch.optim.Adam(field.parameters(), lr=options.lr, eps=1e-15, fused=True)
        scale = {"init_scale": HALF_SCALE} if field.half else {"init_scale": 1.0, "growth_interval": NEVER}
        self.scaler = torch.amp.GradScaler(device.type, **scale)  # in float32 it only keeps a non-finite gradient from being applied
        self.miner = HardSampleMiner(mining_rule(options), sampler.capacity, self.generator) if options.hsm else None
        self.steps = 0
        self.numbers = torch.zeros(len(StepNumbers._fields), device=device)
        self.numbers[-1] = -1

    def __call__(self):
        """One step. What it tells is in `numbers`, on the device."""
        batch = self.source.draw(self.ray_count.value)
        samples, packing = self.sampler.sample(batch.rays, self.generator)
        kept = packing.kept()
        target, background = self._target(batch.target)
        squared_error = torch.zeros((), device=target.device)

        def loss(raw):
            seen = volume.composite(raw, samples, packing, self.options.T_thresh)
            pixels = losses.pixel_loss(seen.features + (1 - seen.opacity)[:, None] * background, target, kept)
            squared_error.copy_(pixels.detach())
            return pixels + self.options.lambda_entropy * losses.opacity_entropy(seen.opacity, kept) if self.options.lambda_entropy else pixels

        total, hard, tau = self._learn(samples, packing.counts[0], loss)
        self._regularise_grid(samples)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ray_count.adapt(packing.counts)
        bad = torch.where((self.numbers[-1] < 0) & ~torch.isfinite(total), float(self.steps), self.numbers[-1])
        wanted = (packing.counts[1], packing.counts[0], packing.counts[2])
        self.numbers.copy_(torch.stack([value.float() for value in (total, squared_error, *wanted, hard, tau, bad)]))
        self.steps += 1

    def _learn(self, samples, count, loss):
        """Accumulates gradients; returns (loss, samples with a graph, tau), all [] on the device."""
        if self.miner:
            mined = self.miner.step(self.field, samples, loss, count, type(samples).select, self.scaler.scale)
            return mined.loss, mined.hard.count, self.miner.tau
        raw = self.field(samples)
        total, delta = loss_gradient(loss, raw)
        raw.backward(self.scaler.scale(delta).to(raw.dtype))
        return total, count, torch.ones_like(total)

    def _target(self, target):
        """The colours to reach [N, 3] and the background behind the field; a photo's own transparency shows the same background."""
        colour = target[:, :3]
        if self.options.background == "random":
            background = torch.rand(colour.shape, device=colour.device, generator=self.generator)
        else:
            background = torch.ones_like(colour)
        if target.shape[1] == 4:
            colour = colour * target[:, 3:] + background * (1 - target[:, 3:])
        return colour, background

    def _regularise_grid(self, samples):
        """Adds the gradients of total variation and weight decay of the hash grid, at this step's samples."""
        one = torch.ones(1, device=samples.positions.device)
        if self.options.lambda_tv:
            positions = torch.where(samples.ray_index[:, None] >= 0, samples.positions, torch.nan)  # padding is nowhere
            self.field.add_total_variation_gradient(positions, self.scaler.scale(one * self.options.lambda_tv))
        if self.options.lambda_wd:
            self.field.add_weight_decay_gradient(self.scaler.scale(one * self.options.lambda_wd))

    def state_dict(self):
        """All that a resumed run needs, as tensors and plain types."""
        return {
            "steps": self.steps,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "miner": self.miner.state_dict() if self.miner else None,
            "rays": self.ray_count.value,
            "generators": [self.generator.get_state(), self.source.generator.get_state()],
        }

    def load_state_dict(self, state):
        self.steps = int(state["steps"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.miner and state["miner"]:
            self.miner.load_state_dict(state["miner"])
        self.ray_count.value.copy_(state["rays"])
        for generator, saved in zip((self.generator, self.source.generator), state["generators"], strict=True):
            generator.set_state(saved.cpu())
        self.numbers.zero_()
        self.numbers[-1] = -1


def mining_rule(options):
    """The MiningRule that the --hsm_* options describe."""
    return MiningRule(options.hsm_budget, options.hsm_fraction, options.hsm_floor, options.hsm_cap, options.hsm_draw, options.hsm_alpha)
