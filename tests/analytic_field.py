"""A field whose surface is known: a ball with a coloured skin, and what the exports need beside it."""

import math
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from nerf.fields import Field
from nerf.rendering import OccupancyRenderer
from nerf.sampling import OccupancyGrid, OccupancySampler
from nerf.scene import Cameras
from nerf.scene.normalise import Similarity
from nerf.volume import density

DENSEST, SHARPNESS = 400.0, 60.0
LEVEL = 20.0  # half the logarithmic way between haze and solid: the surface at this density is the sphere itself


class Ball(Field):
    """Density DENSEST within, falling off outside by a factor e^SHARPNESS a unit; LEVEL on the sphere. The colour tells the normal: (n + 1) / 2."""

    def __init__(self, centre=(0.1, -0.05, 0.2), radius=0.5, bound=1.0):
        super().__init__(bound)
        self.radius, self.looked_at = radius, 0
        self.centre = nn.Parameter(torch.tensor(centre))

    def world(self, positions):
        """Where positions [K, 3] of the field are in the world."""
        return positions

    def density(self, positions):
        """As of Field."""
        self.looked_at += len(positions)
        distance = (self.world(positions) - self.centre).norm(dim=-1) - self.radius
        return (math.log(LEVEL) - SHARPNESS * distance).clamp(max=math.log(DENSEST))

    def forward(self, samples):
        """As of Field."""
        normal = nn.functional.normalize(self.world(samples.positions) - self.centre, dim=-1)
        logits = torch.logit((normal + 1) / 2, eps=1e-4)
        return torch.cat([self.density(samples.positions)[:, None], logits], dim=1)


def cameras_around(count=6, distance=2.0, size=(80, 60), focal=70.0):
    """Cameras looking at the origin from a ring above and one below it, z up."""
    poses = []
    for k, angle in enumerate(np.linspace(0, 2 * np.pi, count, endpoint=False)):
        back = np.array([np.cos(angle), np.sin(angle), 0.8 if k % 2 else -0.8])
        back /= np.linalg.norm(back)
        right = np.cross([0, 0, 1], back)
        right /= np.linalg.norm(right)
        poses.append(np.stack([right, np.cross(back, right), back, distance * back], axis=1))
    rows = np.ones((count, 1), np.float32)
    return Cameras(np.stack(poses).astype(np.float32), rows * np.float32([focal, focal, size[0] / 2, size[1] / 2]), np.zeros((count, 6), np.float32),
                   np.zeros(count, np.int32), np.tile(np.int32(size), (count, 1)), np.full(count, 0.05, np.float32), np.full(count, np.inf, np.float32))  # fmt: skip


def scene_around(bound=1.0, count=6):
    """What the exports ask of a Scene, for cameras_around: a file twice the world's size, shifted."""
    world = Similarity(np.eye(3), np.array([1.0, 2.0, 3.0]), 0.5, np.zeros(3))
    return SimpleNamespace(cameras=cameras_around(count), train=np.arange(count), points=None, aabb=np.float32([-bound] * 3 + [bound] * 3),
                           bound=bound, scale=0.5, world=world, names=[f"{i}.png" for i in range(count)])  # fmt: skip


def model_of(field, options, scene, size=32, contract=False):
    """A Model of a made field with an occupancy grid that has seen it."""
    grid = OccupancyGrid(field.bound, size, options.density_thresh)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(4):
            grid.update(lambda positions: density(field.density(positions)), generator)
    sampler = OccupancySampler(grid, 4096, 2**16, options.dt_gamma, options.max_steps, contract)
    return SimpleNamespace(field=field.eval(), sampler=sampler, render=OccupancyRenderer(field, sampler, scene.aabb, options))
