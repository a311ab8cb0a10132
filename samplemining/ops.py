"""The operators of sample mining and their documentation; their arguments are checked where they are compiled."""

from pathlib import Path

import torch

from kernel_build import load_kernels

from . import reference

kernels = load_kernels(__package__, Path(__file__).parent) or reference


@torch.no_grad()
def thin_samples(
    delta, noise, count, tau, room, *, budget="tau", fraction=0.15, floor=0.05, cap=0.5, momentum=0.01, law="exponential", alpha=0.0
):  # fmt: skip
    """Keeps hard samples, each on its own with a probability that grows with its score, and puts them into a fixed room, in order.

    From "Efficient NeRF Optimization - Not All Samples Remain Equally Hard" (ECCV 2024). Of n rows in use, row i has the score
    s_i = ||delta_i||_2. A row whose norm is not finite is never kept, and a norm below 2^-126 counts as 0. With
    tau_now = sqrt(n sum s^2) / sum s, where that is above 1, tau <- tau + momentum (tau_now - tau). The budget b is n / tau ("tau", the
    paper), n / tau^2 ("ess", the effective sample size) or fraction n ("fixed"), between floor n and cap n, rounded down, and at most
    room - 4 sqrt(room), at least 0.

    Row i is kept with probability pi_i, where noise_i < pi_i. c makes the expected count, sum pi_i, equal b; it is infinite, and every row
    with a score is kept, where no more than b rows have one.
      "exponential": pi = 1 - exp(-c s), the inclusion probabilities of drawing b rows without replacement in proportion to s, which is
          the paper's draw (as a race of exponential times, Efraimidis and Spirakis 2006), with its random end replaced by its constant.
      "linear": pi = min(1, c s), Poisson thinning with the least variance for its expected count.
      "uniform": pi = b / n whatever the score, also where it is 0.
      "all": pi = 1 where s > 0: no budget, tau stays. For the samples behind an opaque surface, which have no gradient.

    The expected count comes within 0.05 % of b (0.8 % for "linear" where all scores lie within 6 % of each other), and tau_now within
    0.05 % of the exact one: both come from a histogram of the scores. The same input gives the same result on every run.

    Args:
        delta: [B, C] float32, C from 1 to 16, B below 2^28: the gradient of the loss at the raw outputs.
        noise: [B] float32, uniform in [0, 1); a row whose noise is NaN is not kept.
        count: [1] int32: n, the rows in use, held to [0, B]; the others are padding and are not kept.
        tau: [1] float32, changed in place; 1 at first. NaN stays NaN, and then b is floor n.
        room: R, rows of the result.
        fraction, floor, cap, momentum: from 0 to 1, floor at most cap.
        alpha: from 0 to 1: each kept row is multiplied by pi^-alpha. 0 is the paper, 1 makes the sum of the rows unbiased.
    Returns:
        index [R] int64, the kept rows in ascending order and 0 beyond them; gradient [R, C] float32 = delta[index] pi^-alpha, 0 beyond
        the kept; counts [2] int32 = (rows in the room, rows drawn): what is drawn beyond the room is left out. Not differentiable.
    Raises:
        ValueError, TypeError: an argument of wrong shape, device, dtype or value, by name.
    """
    return kernels.thin_samples(delta, noise, count, tau, room, budget, fraction, floor, cap, momentum, law, alpha)


@torch.no_grad()
def take_rows(tensors, index):
    """The same rows of several tensors, in one launch.

    Args:
        tensors: 1 to 8 tensors [B, ...] of any dtype whose rows hold a multiple of 4 bytes, at most 2^20.
        index: [R] int64.
    Returns:
        A list of tensors [R, ...]. Not differentiable.
    Raises:
        ValueError, TypeError: an argument of wrong shape, device or dtype, by name.
        IndexError: an index outside [0, B), on the CPU; on CUDA, where nobody looks, such rows are zero.
    """
    for i, tensor in enumerate(tensors):
        if isinstance(tensor, torch.Tensor) and isinstance(index, torch.Tensor) and tensor.device != index.device:
            raise ValueError(f"tensors[{i}] is on {tensor.device} but index is on {index.device}")
    return kernels.take_rows(tensors, index)


def register_shapes():
    """Tells torch the operators' results without running them, for torch.compile, export and opcheck."""

    @torch.library.register_fake("samplemining::thin_samples")
    def _(delta, noise, count, tau, room, budget, fraction, floor, cap, momentum, law, alpha):
        return delta.new_empty(room, dtype=torch.int64), delta.new_empty(room, delta.shape[1]), delta.new_empty(2, dtype=torch.int32)

    @torch.library.register_fake("samplemining::take_rows")
    def _(tensors, index):
        return [tensor.new_empty(index.shape[0], *tensor.shape[1:]) for tensor in tensors]


if kernels is not reference:
    register_shapes()
