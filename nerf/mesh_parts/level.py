"""The density at which the surface lies."""

import math

import torch

from nerf.errors import UserError

SAMPLES = 2**18
BINS = 256
LEAST, MOST = 0.1, 1e5  # densities beyond which all are alike: nothing to be seen, and a wall
FAINTEST = 5.0  # the least iso level: light crosses a fifth of the unit of length at this density, which is fog and no surface


@torch.no_grad()
def iso_level(log_density, space, given, seed):
    """The iso level of a field's surface.

    Otsu's threshold (IEEE Trans. SMC 9, 1979) of the logarithm of density at random points of occupied cells: it parts the haze that lies
    around surfaces from what they are made of. Never below FAINTEST.

    Args:
        log_density: positions [K, 3] of field space -> [K] float; space: Space.
        given: the level that the person asked for, or None; seed: of the choice of points.
    Returns:
        (level, in 1 / world unit; the words that say where it is from).
    Raises:
        UserError: no cell is occupied, the density is not a number, or it is nowhere as high as the level.
    """
    cells = space.occupied_cells()
    if not len(cells):
        raise UserError("There is no mesh to make: no cell of the occupancy grid is occupied; train the scene for longer.")
    generator = torch.Generator(space.device).manual_seed(seed)
    chosen = cells[torch.randint(len(cells), (SAMPLES,), device=space.device, generator=generator)]
    positions = space.grid.positions(chosen, generator)
    values = torch.cat([log_density(part).float() for part in positions.split(SAMPLES // 4)])
    values = values[space.inside(positions)]
    if values.isnan().any():
        raise UserError("There is no mesh to make: the density of the field is not a number; train anew, with a lower --lr.")
    level = given or max(FAINTEST, otsu(values))
    if not len(values) or values.max() < math.log(level):
        densest = values.max().exp().item() if len(values) else 0.0
        remedy = "give a lower --density_thresh" if given else "train the scene for longer, or give a --density_thresh"
        raise UserError(
            f"There is no mesh to make: the field is nowhere denser than {densest:.3g}, and a surface lies at {level:.3g}; {remedy}."
        )
    return level, "as --density_thresh says" if given else "from the histogram of the occupied cells"


def otsu(log_values):
    """The density that best parts the logarithms [K] of densities in two classes: a float from LEAST to MOST; LEAST where all are alike."""
    low, high = math.log(LEAST), math.log(MOST)
    count = torch.histc(log_values.clamp(low, high), BINS, low, high).double()
    if (count > 0).sum() < 2:
        return LEAST
    middle = low + (torch.arange(BINS, device=count.device) + 0.5) * (high - low) / BINS
    share, moment = count.cumsum(0) / count.sum(), (count * middle).cumsum(0) / count.sum()
    between = (moment[-1] * share - moment).square() / (share * (1 - share)).clamp(min=1e-12)
    best = (between >= between.max() * (1 - 1e-9)).nonzero()[:, 0].double().mean()  # the middle of a gap between two classes
    return math.exp(low + (best.item() + 1) * (high - low) / BINS)
