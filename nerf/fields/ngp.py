"""The Instant-NGP field: a multiresolution hash grid and two small networks (Mueller et al. 2022)."""

import torch
from torch import nn
from torch.nn import functional as F

from gridencoder import (
    GridEncoder,
    add_total_variation_gradient,
    add_weight_decay_gradient,
)
from shencoder import SHEncoder

FEATURES = 15  # of the geometry network, handed to the colour network beside the density logit


class NGPField(nn.Module):
    """Hash grid -> 64 -> 64 -> (density logit, 15 features); (features, SH of the direction) -> 32 -> 32 -> colour logits.

    Args:
        bound: positions lie in [-bound, bound]^3; the finest grid level has 2048 cells a world unit of half side.
        log2_table_size: logarithm of the entries of a hashed level.
        half: run the encoding and the networks in float16 (CUDA).
    """

    channels = 4

    def __init__(self, bound, log2_table_size=19, half=False):
        super().__init__()
        self.bound, self.log2_table_size, self.half = bound, log2_table_size, half
        self.grid = GridEncoder(3, levels=16, features=2, base_resolution=16, finest_resolution=2048 * bound, log2_table_size=log2_table_size)
        self.view = SHEncoder(degree=4)
        self.geometry = network(self.grid.output_size, [64, 64], 1 + FEATURES)
        self.colour = network(FEATURES + self.view.output_size, [32, 32], 3)

    def forward(self, samples):
        """Samples -> raw [M, 4]: log density and three colour logits (half where the field runs in half)."""
        with self._precision(samples.positions):
            geometry = self.geometry(self._encode(samples.positions))
            view = self.view(samples.directions).to(geometry.dtype)
            return torch.cat([geometry[:, :1], self._colour(geometry, view)], dim=-1)

    def _colour(self, geometry, view):
        """The colour network, its matrices widened by zeros to multiples of eight, for which tensor cores are several times faster: column 0 of
        `geometry`, the density logit, weighs nothing, and five outputs more than three are dropped."""
        first, *middle, last = (layer for layer in self.colour if isinstance(layer, nn.Linear))
        x = torch.relu_(F.linear(torch.cat([geometry, view], dim=-1), F.pad(first.weight, (1, 0))))
        for layer in middle:
            x = torch.relu_(layer(x))
        return F.linear(x, F.pad(last.weight, (0, 0, 0, -last.out_features % 8)))[:, : last.out_features]

    def density(self, positions):
        """Positions [M, 3] -> log density [M]."""
        with self._precision(positions):
            return self.geometry(self._encode(positions))[:, 0]

    def _encode(self, positions):
        return self.grid(self._unit(positions))

    def _precision(self, tensor):
        return torch.autocast(tensor.device.type, dtype=torch.float16, enabled=self.half)

    def add_total_variation_gradient(self, positions, weight):
        """Adds the gradient of weight [1] times the total variation of the grid cells at positions [P, 3] to the parameters' gradients."""
        add_total_variation_gradient(self.grid.table, self._gradient(), self.grid.offsets, self.grid.resolutions, self._unit(positions), weight)

    def add_weight_decay_gradient(self, weight):
        """Adds the gradient of weight [1] times the mean square of each grid level's entries."""
        add_weight_decay_gradient(self.grid.table, self._gradient(), self.grid.offsets, weight)

    def _gradient(self):
        table = self.grid.table
        if table.grad is None:
            table.grad = torch.zeros_like(table)
        return table.grad

    def _unit(self, positions):
        return (positions + self.bound) / (2 * self.bound)

    def signature(self):
        """What a checkpoint must agree on to fit this field."""
        return {"backbone": "ngp", "bound": self.bound, "log2_table_size": self.log2_table_size}


def network(inputs, hidden, outputs):
    """A plain ReLU network without biases."""
    sizes = [inputs, *hidden]
    layers = []
    for size, following in zip(sizes, hidden):
        layers += [nn.Linear(size, following, bias=False), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs, bias=False))
