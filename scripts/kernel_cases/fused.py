"""The measured calls into the fused fields: beside the bytes, the operations that they must do, which the tensor cores' rate bounds."""

import torch

import fusedfield
import gridencoder

from .cases import CORNERS, FEATURES, HALF, LEVELS, case, finest_resolution

PROPOSAL_LEVELS, PROPOSAL_FINEST, PROPOSAL_TABLE = 5, 128, 17
MERF_FINEST, PLANES_FINEST, MERF_LEVELS, MERF_FEATURES = 512, 2048, 8, 4
NGP_SHAPES = ((64, 32), (64, 64), (16, 64), (32, 31), (32, 32), (3, 32))


def fused_cases(work, log2_table_size):
    """The networks alone, grid and networks together, and their gradients. Nothing where the kernels do not run."""
    device = work.positions.device
    if not fusedfield.available(device):
        return
    yield from ngp_cases(work, log2_table_size, random_weights(NGP_SHAPES, device))
    yield from merf_cases(work, log2_table_size, random_weights(((64, 32), (8, 64)), device))
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


def merf_cases(work, log2_table_size, weights):
    """The MeRF field, but for its shader."""
    samples, device, limits, bound = len(work.t), work.t.device, (14.0, 7.0), work.march["bound"]
    layouts = {"levels": MERF_LEVELS, "features": MERF_FEATURES, "log2_table_size": log2_table_size}
    finest = ((3, MERF_FINEST), *[(2, PLANES_FINEST)] * 3)
    encoders = [gridencoder.GridEncoder(dimensions, finest_resolution=cells, **layouts).to(device) for dimensions, cells in finest]
    tables, layout = [encoder.table.detach().half() for encoder in encoders], ([encoder.offsets for encoder in encoders], [encoder.resolutions for encoder in encoders])
    entries, columns = 2 * sum(table.numel() for table in tables), samples * MERF_LEVELS * MERF_FEATURES * HALF
    at = work.positions, tables, *layout, bound, weights, limits
    yield case(
        fusedfield, "MeRF, grid, planes and network", lambda: fusedfield.merf_at(*at), 28 * samples + entries, "28 M + 2 F E", (CORNERS + 3 * CORNERS // 2) * columns
    )
    encodings = [gridencoder.grid_encode_forward(place, *grid) for place, *grid in zip(fusedfield.reference.merf_coordinates(work.positions, bound), tables, *layout, strict=True)]
    yield case(fusedfield, "MeRF, network", lambda: fusedfield.merf(encodings, weights, limits), 16 * samples + 4 * columns, "16 M + 8 L F M")
    gradient = torch.randn(samples, 8, device=device)
    yield case(
        fusedfield, "MeRF, network's gradient", lambda: fusedfield.merf_backward(encodings, weights, limits, None, gradient),
        32 * samples + 5 * columns, "32 M + 10 L F M",
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
