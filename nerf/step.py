"""One training step, on the device alone: draw rays, march, look, composite, learn, update. Nothing here waits for the device, every shape is
known beforehand and every number that varies lives in a tensor, so on CUDA the step is recorded once and replayed (nerf/replay.py)."""

from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from fusedadam import FusedAdam
from gridencoder import GridEncoder
from nerf import volume
from nerf.errors import UserError
from nerf.hsm import HardSampleMiner, MiningRule
from nerf.poses import PoseRefinement
from nerf.rays import RayCount
from nerf.replay import Replay

HALF_SCALE = 2.0**16  # first loss scale in half precision; it halves when a gradient overflows
ROOM_RATIO = 1.19  # between the sizes for which a step is recorded
WORTHWHILE = 0.6  # share of visible samples below which a second pass over those alone is cheaper than one pass with a graph over all


class StepNumbers(NamedTuple):
    """What a step tells; the order of the row that `TrainingStep.numbers` holds on the device."""

    loss: float  # mean over the rays, entropy and distortion included
    squared_error: float  # mean of the pixels' squared error
    samples: float  # B
    rays: float  # rays that were learned from
    wanted: float  # samples before any ray was left out for lack of room
    hard: float  # b, the samples that had a graph
    drawn: float  # b before any was left out for lack of room
    tau: float  # unevenness of the scores (1 without mining)
    bad_step: float  # the first step whose loss was not finite, -1: none


class TrainingStep:
    """Everything that changes with a step, and the step.

    Args:
        field: nerf.fields.Field; sampler: nerf.sampling.Sampler; source: nerf.rays.RaySource.
        options: nerf.options.Options, resolved.
        device: torch.device.
    """

    def __init__(self, field, sampler, source, options, device):
        self.field, self.sampler, self.source, self.options, self.device = field, sampler, source, options, device
        self.generator = torch.Generator(device).manual_seed(options.seed)
        adaptive = options.adaptive_num_rays and sampler.adaptive
        self.ray_count = RayCount(options.num_rays if sampler.adaptive else sampler.most_rays, adaptive, source.capacity, sampler.capacity, device)
        self.optimizer = module_optimizer(nn.ModuleList([field, sampler]), options, field.half)
        self.poses = None
        if options.refine_poses:
            views = source.views
            self.poses = PoseRefinement(views.poses, source.indices.to(device), options.contract)
            source.views = views.with_poses(self.poses.refined)
            self.optimizer.add_param_group({"params": [self.poses.twists], "lr": options.pose_lr})
        self.terms = volume.LossTerms(options.lambda_entropy, options.lambda_distort, options.near_grad_scale)
        self.replay = Replay(device, options.graph, [self.generator])
        self.miner = HardSampleMiner(mining_rule(options), sampler.capacity, self.generator, ROOM_RATIO if self.replay.enabled else 1.05)
        self.steps = 0
        self.step_number = torch.zeros(1, device=device)  # `steps`, where the device can read it
        self.numbers = torch.zeros(len(StepNumbers._fields), device=device)
        self.numbers[-1] = -1

    def __call__(self):
        """One step. What it tells is in `numbers`, on the device."""
        self.source.fetch(self.steps)
        learning = self.sampler.learns(self.steps)
        room = self.miner.room if self._second_pass() else None
        self.replay("step", lambda: self._run(learning), (room, learning))
        self.steps += 1

    def fit(self, numbers):
        """Adapts the shapes of the next steps to StepNumbers that were read a few steps late; what was recorded for a larger room gives its memory back."""
        room = self.miner.room
        self.miner.fit_room(int(numbers.drawn))
        if self.miner.room < room:
            self.replay.forget()

    def _second_pass(self):
        """Whether the network runs again on chosen samples: always to mine; else where few enough are visible."""
        return self.options.hsm or self.miner.room < WORTHWHILE * self.sampler.capacity

    def _run(self, learning):
        n, noises = self.source.capacity, self.sampler.noises
        random = torch.rand((6 + noises) * n, device=self.device, generator=self.generator)
        pixel, noise, background = random.split((3 * n, noises * n, 3 * n))
        batch = self.source.draw(pixel.view(n, 3), self.ray_count.value)
        placed = self.sampler.place(batch.rays, noise.view(noises, n), learning)
        if self.options.appearance or self.poses:
            placed = placed._replace(samples=placed.samples.of_images(self.source.numbers.index_select(0, batch.rays.image)))
        background = background.view(n, 3) if self.options.background == "random" else torch.ones_like(background).view(n, 3)
        pixels, hard = self._learn(placed, lambda raw: self._gradient(raw, batch, placed, background, learning))
        if learning:
            self.sampler.learn(placed, pixels.weights, self.optimizer.scale)
        self._regularise_grid(placed.samples)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.poses:
            self.poses.settle(self.step_number)
        self.ray_count.adapt(placed.packing.counts)
        self._tell(pixels.told, placed.packing.counts, hard)

    def _posed(self, samples):
        """The samples, such that gradients reach the poses if those are refined."""
        return self.poses.attach(samples) if self.poses else samples

    def _teach(self, samples, gradient, count):
        self.field.learn(self._posed(samples), gradient, count)

    def _gradient(self, raw, batch, placed, background, want_weights=False):
        """(volume.PixelGradient, its delta) at the raw outputs."""
        given = raw, placed, batch.target, background, self.options.T_thresh, self.terms
        if self.field.deferred:
            pixels = volume.shaded_pixel_gradient(*given, partial(self.field.shade, directions=batch.rays.directions), self.optimizer.scale)
        else:
            pixels = volume.pixel_gradient(*given, want_weights)
        return pixels._replace(delta=None), pixels.delta  # whoever keeps what was told does not keep the gradient

    def _learn(self, placed, gradient):
        """Accumulates the field's gradients; returns (volume.PixelGradient, [2] = samples with a graph and samples drawn)."""
        samples, count = placed.samples, placed.packing.counts[:1]
        if self._second_pass():
            mined = self.miner.step(self.field, samples, gradient, count, type(samples).select, self.optimizer.scale, self._teach)
            return mined.told, mined.hard.counts
        raw = self.field(self._posed(samples))
        pixels, delta = gradient(raw.detach())
        raw.backward(self.optimizer.scale(delta).to(raw.dtype))
        visible = delta.any(dim=1).sum(dtype=torch.int32).view(1)
        return pixels, torch.cat([count, visible])

    def _tell(self, told, counts, hard):
        """Fills `numbers`."""
        bad_before = self.numbers[-1:]
        bad = torch.where((bad_before < 0) & ~torch.isfinite(told[:1]), self.step_number, bad_before)
        self.numbers.copy_(torch.cat([told, counts.float(), hard.float(), self.miner.tau, bad]))
        self.step_number += 1

    def _regularise_grid(self, samples):
        """Adds the gradients of total variation and weight decay of the hash grid, at this step's samples."""
        if self.options.lambda_tv:
            positions = torch.where(samples.ray_index[:, None] >= 0, samples.positions, torch.nan)  # padding is nowhere
            self.field.add_total_variation_gradient(positions, self._scaled(self.options.lambda_tv))
        if self.options.lambda_wd:
            self.field.add_weight_decay_gradient(self._scaled(self.options.lambda_wd))

    def _scaled(self, weight):
        return self.optimizer.scale(torch.full((1,), weight, device=self.device))

    def state_dict(self):
        """All that a resumed run needs, as tensors and plain types."""
        twists = {"twists": self.poses.twists.detach()} if self.poses else {}
        return twists | {
            "steps": self.steps,
            "optimizer": self.optimizer.state_dict(),
            "miner": self.miner.state_dict(),
            "rays": self.ray_count.value,
            "generators": [self.generator.get_state(), self.source.generator.get_state()],
        }

    def load_state_dict(self, state):
        """Continues from a state, in the tensors that are there: recorded steps hold their addresses.

        Raises:
            UserError: one of the two refines poses and the other does not.
        """
        if ("twists" in state) != bool(self.poses):
            made, remedy = ("with", "give") if "twists" in state else ("without", "leave out")
            raise UserError(f"The checkpoint was made {made} --refine_poses; {remedy} that flag, or give --ckpt scratch.")
        self.steps = int(state["steps"])
        self.step_number.fill_(self.steps)
        if self.poses:
            self.poses.load(state["twists"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.miner.load_state_dict(state["miner"])
        self.ray_count.load(state["rays"])
        for generator, saved in zip((self.generator, self.source.generator), state["generators"], strict=True):
            generator.set_state(saved.cpu())
        self.numbers.zero_()
        self.numbers[-1] = -1


def module_optimizer(module, options, half):
    """Adam for what is learned: hash tables keep their entries that a step does not reach, and have a gradient buffer and, with `half`, a half copy of their own."""
    grids = [part for part in module.modules() if isinstance(part, GridEncoder)]
    tables = [grid.table for grid in grids]
    networks = [parameter for parameter in module.parameters() if all(parameter is not table for table in tables)]
    scale = {"scale": HALF_SCALE} if half else {"scale": 1.0, "growth_interval": None}
    optimizer = FusedAdam([{"params": tables, "sparse": True}, {"params": networks, "sparse": False}], options.lr, eps=1e-15, **scale)
    for grid in grids:
        grid.gradient = grid.table.grad
        grid.half_copy = optimizer.half_copy(grid.table) if half else None
    return optimizer


def mining_rule(options):
    """The MiningRule that the --hsm_* options describe; without --hsm, all samples that have a gradient."""
    if not options.hsm:
        return MiningRule(draw="visible")
    return MiningRule(options.hsm_budget, options.hsm_fraction, options.hsm_floor, options.hsm_cap, options.hsm_draw, options.hsm_alpha)
