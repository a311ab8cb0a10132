"""The field that only proposes where to look: a small hash grid and a small network, density alone (Barron et al. 2022, section 3)."""

import torch
from torch.nn import functional as F

import fusedfield
from gridencoder import GridEncoder
from nerf.fields.base import GRANULE, Field, matrices, network, run_padded


class ProposalField(Field):
    """Hash grid of 5 levels x 2 -> 16 -> density logit; the sizes of Nerfacto's proposal networks.

    Args:
        bound: positions lie in [-bound, bound]^3.
        finest: cells along an axis of the finest level; the coarsest has 16.
        log2_table_size: logarithm of the entries of a hashed level.
        half: run the encoding and the network in float16.
    """

    channels = 1

    def __init__(self, bound, finest, log2_table_size=17, half=False):
        super().__init__(bound, half)
        self.finest, self.log2_table_size = finest, log2_table_size
        self.grid = GridEncoder(3, levels=5, features=2, base_resolution=16, finest_resolution=finest, log2_table_size=log2_table_size)
        self.geometry = network(self.grid.output_size, [16], 1)

    def forward(self, samples):
        """Samples -> raw [M, 1]: log density."""
        return self.density(samples.positions)[:, None]

    def density(self, positions):
        """Positions [K, 3] -> log density [K] (half where the field runs in half)."""
        fused = self.runs_fused(positions.device)
        if fused and not torch.is_grad_enabled():
            return fusedfield.proposal_at(positions, *self._grid_arguments(), matrices(self.geometry))
        with self._precision(positions):
            encoding = self.grid(self._unit(positions))
            if fused:
                return fusedfield.proposal(encoding, matrices(self.geometry))
            return run_padded(self.geometry, F.pad(encoding, (0, -encoding.shape[1] % GRANULE)))[:, 0]

    def signature(self):
        """What a checkpoint must agree on to fit this field."""
        return {"backbone": "proposal", "bound": self.bound, "finest": self.finest, "log2_table_size": self.log2_table_size}
