"""The Instant-NGP field: a multiresolution hash grid and two small networks (Mueller et al. 2022)."""

import torch
from torch import nn
from torch.nn import functional as F

import fusedfield
from gridencoder import GridEncoder, add_grid_encode_gradient, grid_encode_forward
from nerf.fields.base import GRANULE, Field, add_gradients, gradient_of, matrices, network, run_padded
from shencoder import SHEncoder

FEATURES = 15  # of the geometry network, handed to the colour network beside the density logit
UNSEEN = ("mean", "off")


class NGPField(Field):
    """Hash grid -> 64 -> 64 -> (density logit, 15 features); (features, SH of the direction, appearance) -> 32 -> 32 -> colour logits.

    Each training image may have a few numbers of its own, learned with the rest, that tell its exposure and white balance from the scene's
    (Martin-Brualla et al. 2021, NeRF in the Wild, section 4.1). They reach colour alone, never density.

    Args:
        bound: positions lie in [-bound, bound]^3; the finest grid level has 2048 cells a world unit of half side.
        log2_table_size: logarithm of the entries of a hashed level.
        half: run the encoding and the networks in float16.
        appearance: A, numbers an image; 0: none.
        images: how many images there are, if appearance is not 0. In training mode `samples.image` [M] int64 tells the image of each sample, from
            0 to images - 1, also where the sample is only padding.
        unseen: what stands for an image in evaluation mode, or where `samples.image` is None: "mean", that of all images; or "off", zeros, with
            which all images start.
    Raises:
        ValueError: appearance, images or unseen is out of range, by name.
    """

    has_appearance = True

    def __init__(self, bound, log2_table_size=19, half=False, appearance=0, images=0, unseen="mean"):
        super().__init__(bound, half)
        if appearance < 0:
            raise ValueError(f"appearance must not be negative, not {appearance}")
        if appearance and images < 1:
            raise ValueError(f"images must be at least 1 for an appearance each, not {images}")
        if unseen not in UNSEEN:
            raise ValueError(f"unseen must be one of {', '.join(UNSEEN)}, not {unseen}")
        self.log2_table_size, self.unseen = log2_table_size, unseen
        self.grid = GridEncoder(3, levels=16, features=2, base_resolution=16, finest_resolution=2048 * bound, log2_table_size=log2_table_size)
        self.view = SHEncoder(degree=4)
        self.geometry = network(self.grid.output_size, [64, 64], 1 + FEATURES)
        self.colour = network(FEATURES + self.view.output_size + appearance, [32, 32], 3)
        self.appearance = nn.Parameter(torch.zeros(images, appearance)) if appearance else None

    def forward(self, samples):
        """Samples -> raw [M, 4]: log density and three colour logits (half where the field runs in half)."""
        if self.runs_fused(samples.positions.device):
            return self._fused_forward(samples)
        with self._precision(samples.positions):
            geometry = self.geometry(self._encode(samples.positions))
            inputs = [geometry, self.view(samples.directions).to(geometry.dtype)]
            if self.appearance is not None:
                inputs.append(self._appearances(samples).to(geometry.dtype))
            colour = run_padded(self.colour, torch.cat(inputs, dim=-1), skip=1)  # column 0 is the density logit
            return torch.cat([geometry[:, :1] + self.density_start, colour], dim=-1)

    def _appearances(self, samples):
        """[M, A] float32, and zeros up to a multiple of GRANULE: float32, in which the gradients of an image's many samples add up."""
        rows = F.pad(self.appearance, (0, -self.appearance.shape[1] % GRANULE))
        if self.training and samples.image is not None:
            return rows.index_select(0, samples.image)
        row = rows.mean(dim=0) if self.unseen == "mean" else torch.zeros_like(rows[0])
        return row.expand(len(samples.positions), -1)

    def density(self, positions):
        """Positions [K, 3] -> log density [K]."""
        if self.runs_fused(positions.device) and not torch.is_grad_enabled():
            return fusedfield.ngp_density_at(positions, *self._grid_arguments(), self._matrices(), start=self.density_start)
        with self._precision(positions):
            return self.geometry(self._encode(positions))[:, 0] + self.density_start

    def learn(self, samples, gradient, count=None):
        """As of Field. Fused, the pass with a graph needs no graph: the networks run once, on the way back."""
        positions, directions = samples.positions, samples.directions
        if not self.runs_fused(positions.device) or positions.requires_grad or directions.requires_grad:
            return super().learn(samples, gradient, count)
        table, offsets, resolutions, _ = self._grid_arguments()
        unit, weights = self._unit(positions), self._matrices()
        with torch.no_grad():
            encoding = grid_encode_forward(unit, table, offsets, resolutions)
            of_encoding, of_weights, _ = fusedfield.ngp_backward(encoding, directions, weights, count, gradient)
            add_grid_encode_gradient(gradient_of(self.grid.table), of_encoding, unit, offsets, resolutions)
            add_gradients(weights, of_weights)

    def render_rays(self, rays, bitfield, march, T_thresh):
        """As of Field."""
        if not self.runs_fused(rays.origins.device):
            return None
        grid, weights = self._grid_arguments(), self._matrices()
        return fusedfield.ngp_render(rays.origins, rays.directions, rays.near, rays.far, bitfield, *grid, weights, march, T_thresh, self.density_start)

    def runs_fused(self, device):
        """As of Field; appearance changes the colour network's inputs."""
        return self.appearance is None and super().runs_fused(device)

    def _fused_forward(self, samples):
        if torch.is_grad_enabled():
            with self._precision(samples.positions):
                encoding = self._encode(samples.positions)
            return fusedfield.ngp(encoding, samples.directions, self._matrices(), start=self.density_start)
        return fusedfield.ngp_at(samples.positions, samples.directions, *self._grid_arguments(), self._matrices(), start=self.density_start)

    def _matrices(self):
        return matrices(self.geometry, self.colour)

    def _encode(self, positions):
        return self.grid(self._unit(positions))

    def signature(self):
        """What a checkpoint must agree on to fit this field."""
        plain = {"backbone": "ngp", "bound": self.bound, "log2_table_size": self.log2_table_size, "density_start": self.density_start}
        return plain if self.appearance is None else plain | {"appearance": list(self.appearance.shape)}
