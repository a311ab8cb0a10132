"""The operators in plain PyTorch and float64, without a histogram, which the compiled ones are tested against.

Same names, arguments and results as in `ops`, the settings by position; serves where nothing can be compiled.
"""

import math

import torch

LEAST_SCORE = 2.0**-126
ROUNDS = 60  # of bisection: 2^-60 of the range below
LOWEST, HIGHEST = -40.0, 300.0  # log2 of c times the largest score: one of 2^28 rows; the least score against the largest


def thin_samples(delta, noise, count, tau, room, budget, fraction, floor, cap, momentum, law, alpha):
    """See `ops.thin_samples`."""
    rows = torch.arange(len(delta), device=delta.device)
    used = count.clamp(0, len(delta))
    norm = delta.double().norm(dim=1)
    usable = norm.float().isfinite() & (rows < used)
    scores = torch.where(usable & (norm >= LEAST_SCORE), norm, 0.0)
    if law == "all":
        probability = (scores > 0).double()
        kept = scores > 0
    else:
        follow_tau(tau, scores, used, momentum)
        wanted = budget_of(tau.double(), used.double(), room, budget, fraction, floor, cap)
        probability = inclusion_probability(scores, wanted, used, law) * usable
        kept = noise < probability
    place = torch.where(kept, kept.cumsum(0) - 1, room).clamp(max=room)  # the last place is for what is not kept or has no room
    index = torch.zeros(room + 1, dtype=torch.int64, device=delta.device).scatter_(0, place, rows)[:room]
    drawn = kept.sum()
    filled = torch.arange(room, device=delta.device) < drawn
    index = torch.where(filled, index, 0)
    if len(delta) == 0:
        return index, delta.new_zeros(room, delta.shape[1]), torch.zeros(2, dtype=torch.int32, device=delta.device)
    weight = probability[index].clamp(min=2.0**-24) ** -alpha  # noise comes in steps of 2^-24
    gradient = torch.where(filled[:, None], delta[index] * weight[:, None], 0.0).float()
    return index, gradient, torch.stack([drawn.clamp(max=room), drawn]).int()


def follow_tau(tau, scores, used, momentum):
    """The running mean of tau_now = sqrt(n sum s^2) / sum s, in place."""
    now = (used * scores.square().sum()).sqrt() / scores.sum()
    tau.copy_(torch.where(now > 1, tau + momentum * (now - tau), tau.double()))


def budget_of(tau, used, room, budget, fraction, floor, cap):
    """b [1] float64, a whole number."""
    wanted = {"tau": used / tau, "ess": used / tau.square(), "fixed": used * fraction}[budget]
    wanted = torch.fmin(torch.fmax(wanted, floor * used), cap * used).floor()
    return wanted.clamp(max=math.floor(room - 4 * math.sqrt(room))).clamp(min=0)


def inclusion_probability(scores, wanted, used, law):
    """pi [B] float64 whose sum is `wanted`, by bisection of the logarithm of c; 1 for each positive score where no more have one."""
    if law == "uniform":
        return (wanted / used).nan_to_num().expand(len(scores)) * (torch.arange(len(scores), device=scores.device) < used)
    relative = scores / scores.amax().clamp(min=LEAST_SCORE) if len(scores) else scores

    def law_of(t):
        return t.clamp(max=1) if law == "linear" else -torch.expm1(-t)

    low, high = torch.full_like(wanted, LOWEST), torch.full_like(wanted, HIGHEST)
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        enough = law_of(relative * middle.exp2()).sum() >= wanted
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    probability = torch.where(wanted > 0, law_of(relative * high.exp2()), 0.0)
    return torch.where(wanted >= (scores > 0).sum(), (scores > 0).double(), probability)


def take_rows(tensors, index):
    """See `ops.take_rows`."""
    if not index.is_cuda or len(tensors[0]) == 0:
        return [tensor.index_select(0, index) for tensor in tensors]
    known = (index >= 0) & (index < len(tensors[0]))
    taken = [tensor[torch.where(known, index, 0)] for tensor in tensors]
    return [torch.where(known.view(-1, *[1] * (rows.dim() - 1)), rows, torch.zeros_like(rows)) for rows in taken]
