"""The measured calls into the fused fields: beside the bytes, the operations that they must do, which the tensor cores' rate bounds."""

import torch

import fusedfield
import gridencoder

from .cases import CORNERS, FEATURES, HALF, LEVELS, case, finest_resolution

PROPOSAL_LEVELS, PROPOSAL_FINEST, PROPOSAL_TABLE = 5, 128, 17
NGP_SHAPES = ((64, 32), (64, 64), (16, 64), (32, 31), (32, 32), (3, 32))


def fused_cases(work, log2_table_size):
    """The networks alone, grid and networks together, and their gradients. Nothing where the kernels do not run."""
    device = work.positions.device
    if not fusedfield.available(device):
        return
    yield from ngp_cases(work, log2_table_size, random_weights(NGP_SHAPES, device))
    yield from proposal_cases(work, random_weights(((16, 2 * PROPOSAL_LEVELS), (1, 16)), device))


def ngp_cases(work, log2_table_size, weights):
    """The Instant-NGP field."""
    samples, directions, bound = len(work.t), work.directions, work.march["bound"]
    table, layout = grid_of(LEVELS, finest_resolution(work), log2_table_size, work.t.device)
    columns, gathered = samples * LEVELS * FEATURES * HALF, CORNERS * samples * LEVELS * FEATURES * HALF
    at = work.positions, directions, table, *layout, bound, weights
    yield case(fusedfield, "NGP, grid and networks", lambda: fusedfield.ngp_at(*at), 32 * samples + 2 * table.numel(), "32 M + 2 F E", gathered)
    density = work.positions, table, *layout, bound, weights
    yield case(fusedfield, "NGP, density alone", lambda: fusedfield.ngp_density_at(*density), 14 * samples + 2 * table.numel(), "14 M + 2 F E", gathered)
    encoding = gridencoder.grid_encode_forward(work.unit_positions(), table, *layout)
    yield case(fusedfield, "NGP, networks", lambda: fusedfield.ngp(encoding, directions, weights), 20 * samples + columns, "20 M + 2 L F M")
    gradient = torch.randn(samples, 4, device=work.t.device)
    yield case(
        fusedfield, "NGP, networks' gradient", lambda: fusedfield.ngp_backward(encoding, directions, weights, None, gradient),
        28 * samples + 2 * columns, "28 M + 4 L F M",
    )  # fmt: skip


def proposal_cases(work, weights):
    """A proposal network."""
    samples, bound = len(work.t), work.march["bound"]
    table, layout = grid_of(PROPOSAL_LEVELS, PROPOSAL_FINEST, PROPOSAL_TABLE, work.t.device)
    columns = samples * PROPOSAL_LEVELS * FEATURES * HALF
    at = work.positions, table, *layout, bound, weights
    yield case(fusedfield, "proposal, grid and network", lambda: fusedfield.proposal_at(*at), 14 * samples + 2 * table.numel(), "14 M + 2 F E", CORNERS * columns)
    encoding = gridencoder.grid_encode_forward(work.unit_positions(), table, *layout)
    yield case(fusedfield, "proposal, network", lambda: fusedfield.proposal(encoding, weights), 2 * samples + columns, "2 M + 2 L F M")
    gradient = torch.randn(samples, device=work.t.device)
    yield case(
        fusedfield, "proposal, network's gradient", lambda: fusedfield.proposal_backward(encoding, weights, None, gradient),
        4 * samples + 2 * columns, "4 M + 4 L F M",
    )  # fmt: skip


def grid_of(levels, finest, log2_table_size, device):
    """(half table, (offsets, resolutions)) of a hash grid."""
    encoder = gridencoder.GridEncoder(levels=levels, features=FEATURES, finest_resolution=finest, log2_table_size=log2_table_size).to(device)
    return encoder.table.detach().half(), (encoder.offsets, encoder.resolutions)


def random_weights(shapes, device):
    """Matrices as torch.nn.Linear draws them."""
    return [torch.nn.Linear(inputs, outputs, bias=False).weight.detach().to(device) for outputs, inputs in shapes]
