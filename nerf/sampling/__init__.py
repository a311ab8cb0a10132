"""Where along a ray to look. A sampler gets the field's density as a function, never the field as a parent."""

from nerf.sampling.occupancy import OccupancyGrid, OccupancySampler
from nerf.sampling.proposal import ProposalSampler
from nerf.sampling.sampler import Placed, Sampler

__all__ = ["OccupancyGrid", "OccupancySampler", "Placed", "ProposalSampler", "Sampler"]
