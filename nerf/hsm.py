"""Hard sample mining: look at all samples, learn from the hard ones.

From "Efficient NeRF Optimization - Not All Samples Remain Equally Hard" (Korhonen, Rangu, Tavakoli, Kannala; ECCV 2024). Nothing here knows
what a sample is: any model made of a network (inputs -> raw outputs, a row each) and a loss (raw outputs -> scalar) can be mined.

Notation: B samples, C raw outputs each (before any activation), delta_i = dL/draw_i in R^C, score s_i = ||delta_i||_2, g_i = s_i / sum_j s_j.
  1. raw = network(inputs) on all B, without a graph;
  2. delta = dL/draw, through the loss alone;
  3. b, from how uneven the scores are: tau = sqrt(B sum g^2), b = B / EMA(tau), between `floor` B and `cap` B;
  4. b samples are drawn in proportion to their scores;
  5. the network runs again on those, with a graph, and delta of those is back-propagated.

The gradient so made, sum over the drawn of J_i^T delta_i, is biased: it leaves the easy samples out. That is the paper's choice (alpha = 0).
With alpha = 1 each term is divided by its probability pi_i of being drawn, and the sum's expectation is the gradient of the whole batch.

All numbers stay on the device and every shape is known beforehand: b samples are put into a fixed `room`, and rows beyond b weigh nothing.
Whoever reads b later may `fit_room` to it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

TAU_MOMENTUM = 0.01  # of the running mean of tau, as in the authors' code
ROOM_MARGIN = 1.1  # room for b to grow until it is read again
ROOM_STEPS = 64  # the room is a multiple of capacity / ROOM_STEPS, so that few different shapes occur
SATURATION_ROUNDS = 8  # of the search for c in pi = min(1, c s); each round only grows the saturated set, and few are needed
TINY = 1e-30


@dataclass(frozen=True)
class MiningRule:
    """How many samples are drawn, and how.

    budget: "tau" (the paper, b = B/tau), "ess" (b = B/tau^2, the effective sample size) or "fixed" (b = fraction B).
    floor, cap: limits of b/B.
    draw: "multinomial" (the paper: without replacement, in proportion to the score), "poisson" (each on its own with pi = min(1, c s), which has
        the least variance for its expected count), "top" (the b largest) or "uniform" (the control that ignores the scores).
    alpha: each drawn sample weighs pi^-alpha; 0 is the paper, 1 is unbiased (not for "top", where pi has no meaning).
    """

    budget: str = "tau"
    fraction: float = 0.15
    floor: float = 0.05
    cap: float = 0.5
    draw: str = "multinomial"
    alpha: float = 0.0


class HardSamples(NamedTuple):
    """What was drawn. index [R] int64 in ascending order, weight [R] float32 (0 where the row is only padding), count [] how many weigh something."""

    index: torch.Tensor
    weight: torch.Tensor
    count: torch.Tensor


class Mined(NamedTuple):
    """One mined step. loss [] of all samples, delta [B, C] float32 its gradient at raw, hard: the samples that were learned from."""

    loss: torch.Tensor
    delta: torch.Tensor
    hard: HardSamples


def select_rows(inputs, index):
    """Rows `index` of a tensor of inputs [B, ...]."""
    return inputs.index_select(0, index)


def loss_gradient(loss, raw):
    """The loss and its gradient at the raw outputs, in float32 and without touching the network.

    Args:
        loss: raw [B, C] float32 -> scalar, or (scalar, anything) whose second part is handed through.
        raw: [B, C], any float type.
    Returns:
        (what `loss` returned, delta [B, C] float32).
    """
    leaf = raw.detach().float().requires_grad_()
    with torch.enable_grad():
        value = loss(leaf)
    (delta,) = torch.autograd.grad(value, leaf)
    return value.detach(), delta


class HardSampleMiner:
    """Draws the hard samples of each step and back-propagates them alone.

    Args:
        rule: a MiningRule.
        capacity: the number of rows B that a step has at most.
        generator: the torch.Generator of every draw; its device is where the samples are.
    """

    def __init__(self, rule, capacity, generator):
        self.rule, self.capacity, self.generator = rule, capacity, generator
        self.tau = torch.ones((), device=generator.device)
        self.room = self._rounded(capacity * rule.cap)

    def step(self, network, inputs, loss, count=None, select=select_rows, scale=None):
        """Accumulates the mined gradient into the network's parameters.

        Args:
            network: inputs -> raw [B, C].
            inputs: B samples, of any kind that `select` understands.
            loss: raw [B, C] float32 -> scalar.
            count: [] tensor, how many of the B rows are samples; the rest is padding whose gradient is zero. Default: all.
            select: (inputs, index [R]) -> the inputs of those rows.
            scale: tensor -> tensor, multiplies the gradient that is back-propagated (a loss scale for half precision).
        Returns:
            Mined.
        """
        with torch.no_grad():
            raw = network(inputs)
        value, delta = loss_gradient(loss, raw)
        hard = self.draw(delta.norm(dim=-1), count)
        gradient = delta.index_select(0, hard.index) * hard.weight[:, None]
        raw = network(select(inputs, hard.index))
        raw.backward((scale(gradient) if scale else gradient).to(raw.dtype))
        return Mined(value, delta, hard)

    @torch.no_grad()
    def draw(self, scores, count=None):
        """Draws hard samples: scores [B] >= 0 (what is not finite counts as 0) -> HardSamples with R = room."""
        scores = torch.nan_to_num(scores, nan=0.0, posinf=0.0)
        count = torch.full_like(self.tau, len(scores)) if count is None else count.to(self.tau.dtype)
        room = min(self.room, len(scores))
        budget = self._budget(scores, count).clamp(max=room)
        if self.rule.draw == "poisson":
            return self._draw_poisson(scores, budget, room)
        return self._draw_first(scores, budget, room, count)

    def _budget(self, scores, count):
        """b, a whole number [] on the device; follows tau."""
        g = scores / scores.sum().clamp(min=TINY)
        tau = (count * g.square().sum()).sqrt()
        self.tau.copy_(torch.where(tau > 1, torch.lerp(self.tau, tau, TAU_MOMENTUM), self.tau))
        wanted = {"tau": count / self.tau, "ess": count / self.tau.square(), "fixed": count * self.rule.fraction}[self.rule.budget]
        return torch.minimum(torch.maximum(wanted, count * self.rule.floor), count * self.rule.cap).floor()

    def _draw_first(self, scores, budget, room, count):
        """The `budget` samples that arrive first, when sample i arrives at a random time whose law depends on its score.

        Exponential times with rate s_i make the draw in proportion to s without replacement (Efraimidis and Spirakis 2006). Given the time kappa at which
        the next sample would have arrived, i was drawn with probability pi_i = 1 - exp(-s_i kappa); dividing by that keeps the sum
        unbiased (Duffield et al. 2007; Kool et al. 2020, eq. 12).
        """
        if self.rule.draw == "multinomial":
            time = torch.empty_like(scores).exponential_(generator=self.generator) / scores
        elif self.rule.draw == "uniform":
            time = torch.rand(scores.shape, device=scores.device, generator=self.generator)
            time = torch.where(torch.arange(len(scores), device=scores.device) < count, time, torch.inf)
        else:
            time = torch.where(scores > 0, -scores, torch.inf)
        ordered, index = torch.topk(time, min(room + 1, len(scores)), largest=False, sorted=True)
        rank = torch.arange(room, device=scores.device)
        drawn = (rank < budget) & (ordered[:room] < torch.inf)
        index = index[:room]
        weight = drawn.float()
        if self.rule.alpha and self.rule.draw != "top":
            following = budget.long().clamp(max=len(ordered) - 1).view(1)
            kappa = torch.where(budget < len(ordered), ordered.gather(0, following), torch.inf)
            exponential = self.rule.draw == "multinomial"
            probability = -torch.expm1(-scores[index] * kappa) if exponential else budget / count
            weight = torch.where(drawn, probability.clamp(min=TINY) ** -self.rule.alpha, 0.0)
        index, order = index.sort()  # neighbours in memory stay neighbours: the network reads and adds in order
        return HardSamples(index, weight[order], drawn.sum())

    def _draw_poisson(self, scores, budget, room):
        """Each sample on its own with probability pi_i = min(1, c s_i), where c makes the expected count the budget."""
        c = budget / scores.sum().clamp(min=TINY)
        for _ in range(SATURATION_ROUNDS):
            sure = scores * c >= 1
            rest = scores.masked_fill(sure, 0).sum().clamp(min=TINY)
            c = torch.maximum(c, (budget - sure.sum()) / rest).clamp(max=1 / TINY)
        probability = (scores * c).clamp(max=1)
        drawn = torch.rand(scores.shape, device=scores.device, generator=self.generator) < probability
        place = torch.where(drawn, drawn.cumsum(0) - 1, room).clamp(max=room)  # the last place is for what was not drawn
        rows = torch.arange(len(scores), device=scores.device)
        index = torch.zeros(room + 1, dtype=torch.int64, device=scores.device).scatter_(0, place, rows)[:room]
        count = drawn.sum().clamp(max=room)
        filled = torch.arange(room, device=scores.device) < count
        weight = torch.where(filled, probability[index].clamp(min=TINY) ** -self.rule.alpha, 0.0)
        return HardSamples(index, weight, count)

    def fit_room(self, count):
        """Makes the room fit `count` hard samples (a number read from the device a few steps late) with a margin to grow into."""
        self.room = min(self._rounded(count * ROOM_MARGIN), self._rounded(self.capacity * self.rule.cap))

    def _rounded(self, rows):
        step = max(1, self.capacity // ROOM_STEPS)
        return max(1, -int(-rows // step)) * step

    def state_dict(self):
        """What a resumed run needs: tensors and plain numbers."""
        return {"tau": self.tau.clone(), "room": self.room}

    def load_state_dict(self, state):
        self.tau.copy_(state["tau"])
        self.room = int(state["room"])
