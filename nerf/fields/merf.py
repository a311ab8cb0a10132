"""The MeRF field: a coarse 3-D grid and three fine planes, shaded once a ray (Reiser et al. 2023, MERF, arXiv 2302.12249)."""

import torch
from torch import nn
from torch.nn import functional as F

from freqencoder import FreqEncoder
from gridencoder import GridEncoder
from nerf.fields.base import Field, layer, network

COLOURS, SPECULAR = 3, 4  # composited along a ray: diffuse colour, features of what depends on the view
CELLS, PLANE_CELLS = 256, 1024  # of the finest levels, a world unit of half side: 512 and 2048 in contracted space, the paper's sizes
LEVELS, FEATURES = 8, 4  # of each encoding: half the reads of sixteen levels of two, as large
DENSITY_LIMIT, FEATURE_LIMIT = 14.0, 7.0
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
        limits = torch.tensor([DENSITY_LIMIT] + [FEATURE_LIMIT] * (self.channels - 1))
        self.register_buffer("limits", limits, persistent=False)
        self.view = FreqEncoder(dimensions=3, degree=4)
        self.shader = network(COLOURS + SPECULAR + self.view.output_size, [16, 16], COLOURS, bias=True)
        nn.init.constant_(self.shader[-1].bias, DIFFUSE_START)

    def _grid(self, dimensions, cells):
        finest = max(16, cells * self.bound)
        return GridEncoder(dimensions, levels=LEVELS, features=FEATURES, base_resolution=16, finest_resolution=finest, log2_table_size=self.log2_table_size)

    def forward(self, samples):
        """Samples -> raw [M, 8]: log density, three diffuse logits and four feature logits, all limited; directions have no part in it."""
        return self._raw(samples.positions)

    def density(self, positions):
        """Positions [K, 3] -> log density [K]."""
        return self._raw(positions)[:, 0]

    def _raw(self, positions):
        with self._precision(positions):
            unit = self._unit(positions)
            encoding = self.grid(unit)
            for plane, columns in zip(self.planes, PLANES):
                encoding = encoding + plane(unit[:, columns])
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
