"""Sampling by proposal networks: small fields of density say where along a ray the large one is worth asking (Barron et al. 2022, section 3).

Each level has S intervals a ray between edges in normalised spacing (linear near the camera, in disparity far away; see raysampling). A proposal's
density turns its intervals into a distribution, from which the next level's edges are drawn.
"""

import torch
from torch import nn

import raysampling
from nerf.samples import Packing, Samples
from nerf.sampling.sampler import Placed, Sampler

PADDING = 0.01  # added to each weight before edges are drawn, so that no interval is never looked at (Barron et al. 2021, section 3.1)
SLOWER_EVERY, INTERVAL = 1000, 5  # the proposals learn in each of the first 1000 steps, in every other of the next 1000, ... at last in one of five
ANNEAL_SLOPE = 10  # how fast the proposals' distribution sharpens (Barron et al. 2022, section 3.1)
MIDDLE = 0.5  # what stands for a random number where none is wanted


class ProposalSampler(Sampler):
    """Draws a fixed number of samples on each ray, where the proposal fields see density.

    Args:
        proposals: fields with density(positions [K, 3]) -> logit [K], from coarse to fine.
        counts: intervals a ray, one number for each proposal and one for the field.
        rays: N, the most rays of a step.
        contract: positions are contracted into [-2, 2]^3.
        open_end: the last sample of a ray reaches to infinity, so that it is the background.
        weight: of the interlevel loss.
        anneal_steps: in the first so many steps the distribution is flattened, to look around before it settles; 0: never.
    """

    def __init__(self, proposals, counts, rays, contract, open_end, weight=1.0, anneal_steps=0):
        super().__init__()
        self.proposals, self.counts, self.weight = nn.ModuleList(proposals), tuple(counts), weight
        self.contract, self.open_end = contract, open_end
        self.noises = len(self.counts)  # a ray's edges shift together, at each level
        self.most_rays, self.capacity = rays, rays * self.counts[-1]
        self.anneal_steps = anneal_steps
        device = next(self.proposals.parameters()).device
        self.register_buffer("anneal", torch.ones(1, device=device), persistent=False)  # exponent of the weights, where a recorded step can read it

    def place(self, rays, noise, learning=False):
        """As of Sampler, with M = N times the last of `counts`; a ray that misses the scene has samples without length."""
        line = rays.origins, rays.directions, rays.near, rays.far, rays.count
        jitter = (noise[0][:, None] - MIDDLE) / self.counts[0]
        edges = (torch.linspace(0, 1, self.counts[0] + 1, device=noise.device) + jitter).clamp(0, 1)
        levels = []
        for proposal, following, shift in zip(self.proposals, self.counts[1:], noise[1:]):
            positions, *_ = raysampling.place_samples(edges, *line, contract=self.contract, last_open=False)
            with torch.set_grad_enabled(learning):
                logit = proposal.density(positions)
            levels.append((edges, logit))
            limits = rays.near, rays.far, rays.count
            edges, _ = raysampling.resample(edges, logit.detach(), *limits, shift, following, padding=PADDING, anneal=self.anneal)
        samples = Samples(*raysampling.place_samples(edges, *line, contract=self.contract, last_open=self.open_end))
        return Placed(samples, self._packing(rays), (rays, edges, levels), spacing=_intervals(edges))

    def _packing(self, rays):
        n, each = len(rays.near), self.counts[-1]
        first = torch.arange(n, dtype=torch.int32, device=rays.near.device) * each
        used = rays.count.clamp(0, n)
        return Packing(torch.stack([first, torch.full_like(first, each)], dim=1), torch.cat([used * each, used, used * each]))

    def before_step(self, step, density, generator, run):
        """As of Sampler: sets the annealing of this step."""
        if self.anneal_steps and step <= self.anneal_steps:
            done = step / self.anneal_steps
            self.anneal.fill_(ANNEAL_SLOPE * done / ((ANNEAL_SLOPE - 1) * done + 1))

    def learns(self, step):
        """As of Sampler."""
        return step % min(1 + step // SLOWER_EVERY, INTERVAL) == 0

    def learn(self, placed, weights, scale):
        """As of Sampler: each proposal's weights must bound those of the field from above (the interlevel loss)."""
        rays, edges, levels = placed.proposals
        reference = weights.view(len(rays.near), self.counts[-1])
        for own_edges, logit in levels:
            gradient, _ = raysampling.interlevel_loss(edges, reference, own_edges, logit.detach(), rays.near, rays.far, rays.count)
            logit.backward(scale(self.weight * gradient).to(logit.dtype))

    def signature(self):
        """What a checkpoint must agree on to fit this sampler."""
        return {"cuda_ray": False, "contract": self.contract}


def _intervals(edges):
    """[N, S + 1] -> [N S, 2]."""
    return torch.stack([edges[:, :-1], edges[:, 1:]], dim=-1).view(-1, 2)
