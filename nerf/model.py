"""The parts of a radiance field, put together from the options."""

from typing import NamedTuple

from torch import nn

from nerf.errors import UserError
from nerf.fields import NGPField
from nerf.rendering import OccupancyRenderer
from nerf.sampling import OccupancyGrid, OccupancySampler, Sampler


class Model(NamedTuple):
    """field: what is learned; sampler: places samples; render(cameras, index) -> Rendered."""

    field: nn.Module
    sampler: Sampler
    render: OccupancyRenderer

    def signature(self):
        """What a checkpoint must agree on to fit this model."""
        return {**self.field.signature(), **self.sampler.signature()}


def build_model(options, scene, device):
    """A Model for a scene, on the device, with fresh parameters.

    Raises:
        UserError: the options ask for sampling by proposal networks, which this version does not have.
    """
    if not options.cuda_ray:
        raise UserError("Sampling by proposal networks (-O2, or no --cuda_ray) is not available in this version; use -O or --cuda_ray.")
    field = NGPField(scene.bound, options.log2_table_size, half=options.fp16 and device.type == "cuda").to(device)
    grid = OccupancyGrid(scene.bound, options.grid_size, options.density_thresh).to(device)
    sampler = OccupancySampler(grid, options.num_points, options.dt_gamma, options.max_steps, options.contract, options.update_extra_interval)
    return Model(field, sampler, OccupancyRenderer(field, sampler, scene.aabb, options))
