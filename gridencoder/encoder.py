"""The grid encoding as a module: its table of trainable features and the layout of its levels."""

import math

import torch
from torch import nn

from .ops import grid_encode
from .reference import check_options


def level_layout(dimensions, levels, base_resolution, finest_resolution, log2_table_size):
    """Where each level lies in the table, and how fine it is.

    Level l has ceil(base * s^l) entries along an axis, s = (finest / base)^(1 / (levels - 1)), and in the table as many as that makes in D
    dimensions but at most 2^log2_table_size, rounded up to 8 (Mueller et al. 2022, equations 2 and 3).

    Returns:
        offsets: levels + 1 ints, the first entry of each level and, last, the number of entries of the table.
        resolutions: `levels` ints.
    """
    offsets, resolutions = [0], []
    growth = math.log(finest_resolution / base_resolution) / max(levels - 1, 1)
    for level in range(levels):
        exact = base_resolution * math.exp(level * growth)
        resolution = math.ceil(exact * (1 - 1e-9))  # 2048.0000000001 is 2048: the margin is far above rounding, far below a cell
        entries = min(2**log2_table_size, resolution**dimensions)
        resolutions.append(resolution)
        offsets.append(offsets[-1] + -(-entries // 8) * 8)
    return offsets, resolutions


class GridEncoder(nn.Module):
    """Trainable features on a pyramid of grids, interpolated; coarse levels are dense, fine ones hashed or tiled (Mueller et al. 2022).

    Args:
        dimensions: D, of the positions: 2 or 3.
        levels: L, number of grids.
        features: F, numbers an entry: 1, 2, 4 or 8.
        base_resolution: entries along an axis of the coarsest level.
        finest_resolution: of the finest one.
        log2_table_size: a level has at most 2^log2_table_size entries, 3 to 28.
        gridtype, interpolation, align_corners: as in `grid_encode`.
    Attributes:
        table: parameter [E, F] float32, E entries of all levels.
        offsets: buffer [L + 1] int32, first entry of each level.
        resolutions: buffer [L] int32, entries along an axis of each level.
        gridtype, interpolation, align_corners: as given.
        half_copy: None, or [E, F] float16 kept equal to the table by an optimiser; read under float16 autocast, in training mode.
        gradient: None, or [E, F] float32, to which the backward pass adds the table's gradient.
        output_size: L * F.
    Raises:
        ValueError: an argument out of range, by name.
    """

    def __init__(
        self,
        dimensions=3,
        levels=16,
        features=2,
        base_resolution=16,
        finest_resolution=2048,
        log2_table_size=19,
        gridtype="hash",
        interpolation="linear",
        align_corners=False,
    ):
        super().__init__()
        if dimensions not in (2, 3):
            raise ValueError(f"dimensions must be 2 or 3, not {dimensions}")
        if features not in (1, 2, 4, 8):
            raise ValueError(f"features must be 1, 2, 4 or 8, not {features}")
        check_options(gridtype, interpolation)
        if levels < 1:
            raise ValueError(f"levels must be at least 1, not {levels}")
        if not 3 <= log2_table_size <= 28:
            raise ValueError(f"log2_table_size must be 3 to 28, not {log2_table_size}")
        if not 1 <= base_resolution <= finest_resolution <= 2**20:
            raise ValueError(
                f"resolutions must satisfy 1 <= base <= finest <= 2^20, not base {base_resolution}, finest {finest_resolution}"
            )
        offsets, resolutions = level_layout(dimensions, levels, base_resolution, finest_resolution, log2_table_size)
        if offsets[-1] >= 2**31:
            raise ValueError(f"levels of at most 2^{log2_table_size} entries make {offsets[-1]} in all, more than 2^31: take fewer levels or smaller ones")
        self.output_size = levels * features
        self.gridtype, self.interpolation, self.align_corners = gridtype, interpolation, align_corners
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int32), persistent=False)
        self.register_buffer("resolutions", torch.tensor(resolutions, dtype=torch.int32), persistent=False)
        self.table = nn.Parameter(torch.empty(offsets[-1], features))
        self.half_copy = self.gradient = self._halved = None
        self.reset_parameters()

    def reset_parameters(self, generator=None):
        """Draws the table from U(-1e-4, 1e-4)."""
        nn.init.uniform_(self.table, -1e-4, 1e-4, generator=generator)

    def forward(self, positions):
        """positions [M, D] float32 in [0, 1] -> [M, L * F]; float16 under float16 autocast. See `grid_encode`."""
        half_copy = self.half_copy if self.training else None  # evaluation may have other values in the table, such as their mean
        return grid_encode(
            positions, self.table, self.offsets, self.resolutions, self.gridtype, self.interpolation, self.align_corners, half_copy, self.gradient
        )  # fmt: skip

    def half_table(self):
        """The table in float16 [E, F], not differentiable: `half_copy` in training mode if there is one, else a copy.

        In evaluation mode the copy is kept until the mode changes or PyTorch knows of a change of the table: what a replayed CUDA graph does to it in that
        mode goes unseen.
        """
        if self.training:
            return self.table.detach().half() if self.half_copy is None else self.half_copy
        state = self.table._version, self.table.data_ptr()
        if self._halved is None or self._halved[0] != state:
            self._halved = state, self.table.detach().half()
        return self._halved[1]

    def train(self, mode=True):
        """As of torch.nn.Module; a copy that `half_table` keeps is dropped."""
        self._halved = None
        return super().train(mode)

    def extra_repr(self):
        resolutions = self.resolutions.tolist()
        entries, features = self.table.shape
        size = f"{len(resolutions)} levels of {resolutions[0]} to {resolutions[-1]} cells, {entries} entries of {features} features"
        return f"{size}, {self.gridtype}, {self.interpolation}, align_corners={self.align_corners}"
