"""The MeRF field: a coarse 3-D grid and three fine planes, shaded once a ray (Reiser et al. 2023, MERF, arXiv 2302.12249)."""

from functools import reduce

import torch
from torch import nn
from torch.nn import functional as F

import fusedfield
from freqencoder import FreqEncoder
from gridencoder import GridEncoder, add_grid_encode_gradient, grid_encode_forward
from nerf.fields.base import Field, add_gradients, gradient_of, layer, network

COLOURS, SPECULAR = 3, 4  # composited along a ray: diffuse colour, features of what depends on the view
CELLS, PLANE_CELLS = 256, 1024  # of the finest levels, a world unit of half side: 512 and 2048 in contracted space, the paper's sizes
LEVELS, FEATURES = 8, 4  # of each encoding: half the reads of sixteen levels of two, as large
LIMITS = 14.0, 7.0  # of the density logit, and of the others
PLANES = (slice(0, 2), slice(1, 3), slice(0, 3, 2))  # xy, yz, xz; slices, since a list of columns would be copied to the device each time
DIFFUSE_START = -3.0  # logit: what depends on the view begins at 5 %, so that the diffuse colour explains what it can


class MeRFField(Field):
    """(3-D hash grid + three hashed planes, summed) -> 64 -> (density logit, 3 diffuse logits, 4 feature logits), and a shader a ray.

    Logits are limited smoothly, by m tanh(x / m), to the ranges in which the paper stores what it bakes in 8 bits: m = 14 for density and 7 for
    the others. The paper writes the same curve as a scaled sigmoid, of slope m / 2 at zero; the slope is 1 here, so that
    learning rates mean what they mean for the other fields. Unlike the paper, the encodings are summed before the network and the limit is put on
    what is composited: one network in place of four. Such a field keeps MeRF's ranges and its deferred shading, but not a table of the
    paper's kind for each plane. Nothing is rounded in training.

    Args:
        bound: positions lie in [-bound, bound]^3 (2 in contracted space).
        log2_table_size: logarithm of the entries of a hashed level.
        half: run the encodings and the network of the samples in float16; the shader runs in float32.
    """

    channels = 1 + COLOURS + SPECULAR
    deferred = True

    def __init__(self, bound, log2_table_size=19, half=False):
        super().__init__(bound, half)
        self.log2_table_size = log2_table_size
        self.grid = self._grid(3, CELLS)
        self.planes = nn.ModuleList(self._grid(2, PLANE_CELLS) for _ in PLANES)
        self.hidden = layer(self.grid.output_size, 64)
        self.output = layer(64, self.channels)
        limits = torch.tensor([LIMITS[0]] + [LIMITS[1]] * (self.channels - 1))
        self.register_buffer("limits", limits, persistent=False)
        self.view = FreqEncoder(dimensions=3, degree=4)
        self.shader = network(COLOURS + SPECULAR + self.view.output_size, [16, 16], COLOURS, bias=True)
        nn.init.constant_(self.shader[-1].bias, DIFFUSE_START)

    def _grid(self, dimensions, cells):
        finest = max(16, cells * self.bound)
        return GridEncoder(dimensions, levels=LEVELS, features=FEATURES, base_resolution=16, finest_resolution=finest, log2_table_size=self.log2_table_size)

    def forward(self, samples):
        """Samples -> raw [M, 8]: log density, three diffuse logits and four feature logits, all limited; directions have no part in it."""
        positions = samples.positions
        if not self.runs_fused(positions.device):
            return self._raw(positions)
        if not torch.is_grad_enabled():
            return fusedfield.merf_at(positions, *self._grids_arguments(), self._matrices(), LIMITS)
        with self._precision(positions):
            encodings = self._encode(positions)
        return fusedfield.merf(encodings, self._matrices(), LIMITS)

    def density(self, positions):
        """Positions [K, 3] -> log density [K]."""
        if self.runs_fused(positions.device) and not torch.is_grad_enabled():
            return fusedfield.merf_density_at(positions, *self._grids_arguments(), self._matrices(), LIMITS)
        return self._raw(positions)[:, 0]

    def learn(self, samples, gradient, count=None):
        """As of Field. Fused, the pass with a graph needs no graph: the network runs once, on the way back."""
        if not self.runs_fused(samples.positions.device) or samples.positions.requires_grad:
            return super().learn(samples, gradient, count)
        encoders, weights = self._encoders(), self._matrices()
        with torch.no_grad():
            coordinates = [at.contiguous() for at in self._coordinates(samples.positions)]
            encodings = [grid_encode_forward(at, grid.half_table(), grid.offsets, grid.resolutions) for grid, at in zip(encoders, coordinates)]
            of_encoding, of_weights = fusedfield.merf_backward(encodings, weights, LIMITS, count, gradient)
            for grid, at in zip(encoders, coordinates):
                add_grid_encode_gradient(gradient_of(grid.table), of_encoding, at, grid.offsets, grid.resolutions)
            add_gradients(weights, of_weights)

    def _encoders(self):
        return [self.grid, *self.planes]

    def _coordinates(self, positions):
        unit = self._unit(positions)
        return [unit, *(unit[:, columns] for columns in PLANES)]

    def _encode(self, positions):
        return [encoder(at) for encoder, at in zip(self._encoders(), self._coordinates(positions))]

    def _grids_arguments(self):
        encoders = self._encoders()
        return [grid.half_table() for grid in encoders], [grid.offsets for grid in encoders], [grid.resolutions for grid in encoders], self.bound

    def _matrices(self):
        return [self.hidden.weight, self.output.weight]

    def _raw(self, positions):
        with self._precision(positions):
            encoding = reduce(torch.add, self._encode(positions))
            hidden = torch.relu_(self.hidden(encoding))
            raw = torch.tanh(F.linear(hidden, self.output.weight / self.limits[:, None]))  # divides a small matrix in place of M rows
            return raw * self.limits.to(raw.dtype)

    def shade(self, features, opacity, directions):
        """Composited diffuse colour, and what a small network adds to it for the direction of the view, as the paper shades.

        In training the sum may exceed one: clamped, a pixel that is too bright would learn nothing. In evaluation it is clamped.

        Args, Returns: as Field.shade.
        """
        inputs = torch.cat([features, self.view(directions)], dim=-1)
        colour = features[:, :COLOURS] + opacity[:, None] * torch.sigmoid(self.shader(inputs))
        return colour if self.training else torch.minimum(colour, opacity[:, None])  # one, where the ray is opaque

    def signature(self):
        """What a checkpoint must agree on to fit this field."""
        return {"backbone": "merf", "bound": self.bound, "log2_table_size": self.log2_table_size, "levels": LEVELS}
