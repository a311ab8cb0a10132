"""The frequency encoding as a module."""

from torch import nn

from .ops import check_degree, check_dimensions, freq_encode


class FreqEncoder(nn.Module):
    """Sines and cosines of `dimensions` coordinates at `degree` octaves, after the coordinates themselves with `include_input`;
    `output_size` = dimensions * (2 degree + [include_input]). See `freq_encode`."""

    def __init__(self, dimensions=3, degree=6, include_input=True):
        super().__init__()
        check_dimensions(dimensions)
        check_degree(degree)
        self.dimensions = dimensions
        self.degree = degree
        self.include_input = include_input
        self.output_size = dimensions * (2 * degree + bool(include_input))

    def forward(self, positions):
        """positions [M, dimensions] -> [M, output_size]; float16 under float16 autocast. Raises ValueError for another shape."""
        if positions.dim() != 2 or positions.shape[1] != self.dimensions:
            raise ValueError(f"positions must be of shape [M, {self.dimensions}], not {list(positions.shape)}")
        return freq_encode(positions, self.degree, self.include_input)

    def extra_repr(self):
        return f"dimensions={self.dimensions}, degree={self.degree}, include_input={self.include_input}"
