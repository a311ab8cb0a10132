"""The parts of a radiance field, put together from the options."""

from typing import NamedTuple

from torch import nn

from nerf.fields import ProposalField, build_field
from nerf.rendering import OccupancyRenderer, ProposalRenderer, Renderer
from nerf.sampling import OccupancyGrid, OccupancySampler, ProposalSampler, Sampler

CONTRACTED = 2.0  # half side of the cube into which space is contracted
MARCHED_START = 1.5  # log density of an untrained field that is marched: in thinner fog, what stands before a camera may stay as part of its picture
SAMPLES_PER_RAY = 4  # the ray capacity of a marched step is its sample capacity over this: fewer samples a ray leave room unused, nothing else
PROPOSALS = (128, 256)  # cells of the proposal networks' finest levels
PROPOSAL_TABLE = 17  # log2 of the entries of their hashed levels, at most that of the field


class Model(NamedTuple):
    """field: what is learned; sampler: places samples, and may learn too; render(cameras, index) -> Rendered."""

    field: nn.Module
    sampler: Sampler
    render: Renderer

    def signature(self):
        """What a checkpoint must agree on to fit this model."""
        return {**self.field.signature(), **self.sampler.signature()}


def build_model(options, scene, device):
    """A Model for a scene, on the device, with fresh parameters.

    Raises:
        UserError: an option that the backbone does not have.
    """
    bound = CONTRACTED if options.contract else scene.bound
    half = options.fp16 and device.type == "cuda"
    appearance = {"appearance": options.appearance, "images": len(scene.train)} if options.appearance else {}
    field = build_field(options.backbone, bound, log2_table_size=options.log2_table_size, half=half, **appearance).to(device)
    field.fused = options.field == "fused"
    if options.cuda_ray:
        field.density_start = MARCHED_START
        grid = OccupancyGrid(bound, options.grid_size, options.density_thresh).to(device)
        rays = max(options.num_rays, options.num_points // SAMPLES_PER_RAY)
        march = options.dt_gamma, options.max_steps, options.contract
        sampler = OccupancySampler(grid, rays, options.num_points, *march, options.update_extra_interval)
        return Model(field, sampler, OccupancyRenderer(field, sampler, scene.aabb, options))
    table = min(PROPOSAL_TABLE, options.log2_table_size)
    proposals = [ProposalField(bound, finest, table, half).to(device) for finest in PROPOSALS]
    for proposal in proposals:
        proposal.fused = field.fused
    rays = max(1, options.num_points // options.num_steps[-1])
    open_end = options.background == "last_sample"
    sampler = ProposalSampler(proposals, options.num_steps, rays, options.contract, open_end, options.lambda_proposal, options.anneal_steps)
    return Model(field, sampler, ProposalRenderer(field, sampler, scene.aabb, options))
