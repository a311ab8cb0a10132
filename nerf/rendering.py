"""Whole pictures of a field, by the samples of its sampler."""

import torch

import raymarching
from nerf import volume
from nerf.evaluation import Rendered
from nerf.rays import Views
from nerf.samples import Rays, Samples
from nerf.sampling.proposal import MIDDLE

RAYS_AT_ONCE = {"cuda": 2**19, "cpu": 2**13}  # on a GPU a whole picture of half a megapixel: each round ends in a wait for the device
SAMPLES_AT_ONCE = {"cuda": 2**21, "cpu": 2**16}
MOST_SAMPLES_A_ROUND = 64
FAINT = 1e-3  # an opacity below which a pixel has no depth to speak of


class Renderer:
    """Renders pictures of a field over a white background.

    Args:
        field: nerf.fields.Field; sampler: nerf.sampling.Sampler; aabb [6] numpy; options: nerf.options.Options.
    """

    def __init__(self, field, sampler, aabb, options):
        self.field, self.sampler, self.aabb, self.options = field, sampler, aabb, options
        self.device = next(field.parameters()).device

    def __call__(self, cameras, index):
        """View `index` of nerf.scene.Cameras -> Rendered (numpy)."""
        return Rendered(*(part.cpu().numpy() for part in self.picture(cameras, index)))

    @torch.no_grad()
    def picture(self, cameras, index):
        """As `__call__`, on the device: rgb [H, W, 3], depth [H, W], opacity [H, W] float32."""
        views = Views(cameras.select([index]), self.aabb, self.device)
        rays = views.image_rays(0)
        width, height = (int(side) for side in cameras.sizes[index])
        features, opacity, depth = self.composite(rays)
        rgb = self.field.shade(features, opacity, rays.directions) + (1 - opacity)[:, None]
        depth = depth / opacity.clamp(min=FAINT)
        return tuple(part.reshape(height, width, *part.shape[1:]) for part in (rgb, depth, opacity))

    def composite(self, rays):
        """Rays -> (features [N, C - 1], opacity [N], depth [N]), without a background."""
        raise NotImplementedError


class ProposalRenderer(Renderer):
    """Asks proposal networks where to look, for so many rays at once as --max_ray_batch says."""

    def composite(self, rays):
        """As of Renderer."""
        parts = [self._chunk(rays, rows) for rows in torch.arange(len(rays.near), device=self.device).split(self.options.max_ray_batch)]
        return tuple(map(torch.cat, zip(*parts)))

    def _chunk(self, rays, rows):
        chosen = Rays(*(column.index_select(0, rows) for column in (rays.origins, rays.directions, rays.near, rays.far, rays.image)), torch.full_like(rays.count, len(rows)))
        placed = self.sampler.place(chosen, torch.full((self.sampler.noises, len(rows)), MIDDLE, device=self.device))
        seen = volume.composite(self.field(placed.samples), placed.samples, placed.packing, self.options.T_thresh)
        return seen.features, seen.opacity, seen.depth


class OccupancyRenderer(Renderer):
    """Marches through the occupied cells: all rays together, a few samples at a time, dropping those that are done; or as the field does it."""

    def composite(self, rays):
        """As of Renderer; at once, where the field knows how."""
        done = self.field.render_rays(rays, self.sampler.grid.bits, self.sampler.march, self.options.T_thresh)
        return self._in_rounds(rays) if done is None else done

    def _in_rounds(self, rays):
        total = len(rays.near)
        features = torch.zeros((total, self.field.channels - 1), device=self.device)
        opacity, depth = torch.zeros(total, device=self.device), torch.zeros(total, device=self.device)
        t = rays.near.clone()
        for chunk in torch.arange(total, dtype=torch.int32, device=self.device).split(RAYS_AT_ONCE[self.device.type]):
            alive = chunk.clone()
            while len(alive):
                self._round(rays, alive, t, features, opacity, depth)
                alive = alive[alive >= 0]
        return features, opacity, depth

    def _round(self, rays, alive, t, features, opacity, depth):
        """Advances the rays `alive` by a few samples each; finished ones become -1 in place."""
        steps = max(1, min(MOST_SAMPLES_A_ROUND, SAMPLES_AT_ONCE[self.device.type] // len(alive)))
        grid = self.sampler.grid
        positions, directions, middle, dt, following = raymarching.march_rays(
            alive, t, rays.origins, rays.directions, rays.far, grid.bits, steps=steps, **self.sampler.march
        )
        raw = self.field(Samples(positions, directions, middle, dt, alive.repeat_interleave(steps)))
        density, colour = volume.activate(raw)
        raymarching.composite_rays(alive, t, following, density, colour, middle, dt, features, opacity, depth, self.options.T_thresh)
