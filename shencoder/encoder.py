"""The spherical-harmonics encoding as a module."""

from torch import nn

from .ops import check_degree, sh_encode


class SHEncoder(nn.Module):
    """Real spherical harmonics of all orders below `degree` (1 to 8); `output_size` = degree^2. See `sh_encode`."""

    def __init__(self, degree=4):
        super().__init__()
        check_degree(degree)
        self.degree = degree
        self.output_size = degree**2

    def forward(self, directions):
        """directions [M, 3] -> [M, degree^2]; float16 under float16 autocast."""
        return sh_encode(directions, self.degree)

    def extra_repr(self):
        return f"degree={self.degree}"
