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

All numbers stay on the device and every shape is known beforehand: what is drawn goes into `room` rows, and rows beyond b have no gradient.
Whoever reads b later may `fit_room` to it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from samplemining import take_rows, thin_samples

TAU_MOMENTUM = 0.01  # of the running mean of tau, as in the authors' code
ROOM_MARGIN = 1.1  # room for b to grow until it is read again
ROOM_SLACK = 1.4  # a room is left for a smaller one once it is this much larger than what is drawn
TINY = 1e-30
LAWS = {"thinning": "exponential", "poisson": "linear", "uniform": "uniform", "visible": "all"}  # draws that keep each sample on its own


@dataclass(frozen=True)
class MiningRule:
    """How many samples are drawn, and how.

    budget: "tau" (the paper, b = B/tau), "ess" (b = B/tau^2, the effective sample size) or "fixed" (b = fraction B).
    floor, cap: limits of b/B. Draws that keep each sample on its own aim at four standard deviations less than the room, so that near cap 1 they keep fewer.
    draw:
        "multinomial": the paper's, b samples without replacement, in proportion to the score;
        "thinning": each on its own with the probability that the paper's draw includes it, pi = 1 - exp(-c s), where c makes the expected
            count b; the same distribution but for the count, which is random, and far cheaper: no sort;
        "poisson": each on its own with pi = min(1, c s), which has the least variance for its expected count;
        "top": the b largest;
        "uniform": each on its own with pi = b/B, the control that ignores the scores;
        "visible": all that have any gradient, whatever the budget: what lies behind an opaque surface has none.
    alpha: each drawn sample weighs pi^-alpha; 0 is the paper, 1 is unbiased (not for "top", where pi has no meaning).
    """

    budget: str = "tau"
    fraction: float = 0.15
    floor: float = 0.05
    cap: float = 0.5
    draw: str = "thinning"
    alpha: float = 0.0


class HardSamples(NamedTuple):
    """What was drawn. index [R] int64 in ascending order, then 0; gradient [R, C] float32, what to back-propagate at those (weighted; 0 where the
    row is only padding); counts [2] int32: rows in use, and rows drawn (more, where the room was too small)."""

    index: torch.Tensor
    gradient: torch.Tensor
    counts: torch.Tensor


class Mined(NamedTuple):
    """One mined step. told: what the loss told; hard: the samples that were learned from."""

    told: torch.Tensor
    hard: HardSamples


def select_rows(inputs, index):
    """Rows `index` [R] of a tensor of inputs [B, ...]."""
    return take_rows([inputs], index)[0]


def by_autograd(loss):
    """The gradient at the raw outputs of any loss: what `HardSampleMiner.step` takes, where there is no formula for it.

    Args:
        loss: raw [B, C] float32 -> scalar.
    Returns:
        raw [B, C] of any float type -> (the loss [], its gradient [B, C] float32); the network is not touched.
    """

    def gradient(raw):
        leaf = raw.detach().float().requires_grad_()
        with torch.enable_grad():
            value = loss(leaf)
        (delta,) = torch.autograd.grad(value, leaf)
        return value.detach(), delta

    return gradient


class HardSampleMiner:
    """Draws the hard samples of each step and back-propagates them alone.

    Args:
        rule: a MiningRule.
        capacity: the number of rows B that a step has at most.
        generator: the torch.Generator of every draw; its device is where the samples are.
        room_ratio: the room is capacity * cap over a power of this, so that few different shapes occur where each is costly to prepare.
    """

    def __init__(self, rule, capacity, generator, room_ratio=1.05):
        self.rule, self.capacity, self.generator, self.room_ratio = rule, capacity, generator, room_ratio
        self.tau = torch.ones(1, device=generator.device)
        self.most = capacity if rule.draw == "visible" else max(1, int(capacity * rule.cap))
        self.room = self.most

    def step(self, network, inputs, gradient, count=None, select=select_rows, scale=None, learn=None):
        """Accumulates the mined gradient into the network's parameters.

        Args:
            network: inputs -> raw [B, C].
            inputs: B samples, of any kind that `select` understands.
            gradient: raw [B, C] -> (anything it wants to tell, the loss's gradient at raw [B, C] float32); see `by_autograd`.
            count: [1] int32, how many of the B rows are samples; the rest is padding. Default: all.
            select: (inputs, index [R]) -> the inputs of those rows.
            scale: tensor -> tensor, multiplies the gradient that is back-propagated (a loss scale for half precision).
            learn: (inputs of R rows, gradient [R, C] float32 at their raw outputs, count [1] of rows in use) -> None: a way to the parameters'
                gradients that is shorter than `network(inputs).backward(gradient)`, or None.
        Returns:
            Mined.
        """
        with torch.no_grad():
            raw = network(inputs)
            told, delta = gradient(raw)
        del raw  # its memory serves the pass with a graph
        hard = self.draw(delta, count)
        del delta
        chosen, upstream = select(inputs, hard.index), scale(hard.gradient) if scale else hard.gradient
        if learn:
            learn(chosen, upstream, hard.counts[:1])
        else:
            raw = network(chosen)
            raw.backward(upstream.to(raw.dtype))
        return Mined(told, hard)

    @torch.no_grad()
    def draw(self, delta, count=None):
        """Draws hard samples: delta [B, C] float32, the gradient at each (a row that is not finite is never drawn) -> HardSamples with R = room."""
        count = torch.full((1,), len(delta), dtype=torch.int32, device=delta.device) if count is None else count
        room, rule = min(self.room, len(delta)), self.rule
        if rule.draw in LAWS:
            noise = torch.rand(len(delta), device=delta.device, generator=self.generator)
            knobs = {"budget": rule.budget, "fraction": rule.fraction, "floor": rule.floor, "cap": rule.cap, "alpha": rule.alpha}
            return HardSamples(*thin_samples(delta, noise, count, self.tau, room, **knobs, momentum=TAU_MOMENTUM, law=LAWS[rule.draw]))
        scores = torch.nan_to_num(delta.norm(dim=-1), nan=0.0, posinf=0.0)
        scores = scores.masked_fill(torch.arange(len(scores), device=scores.device) >= count, 0)
        return self._draw_first(delta, scores, self._budget(scores, count).clamp(max=room), room)

    def _budget(self, scores, count):
        """b, a whole number [1] on the device; follows tau."""
        g = scores / scores.sum().clamp(min=TINY)
        tau = (count * g.square().sum()).sqrt()
        self.tau.copy_(torch.where(tau > 1, torch.lerp(self.tau, tau, TAU_MOMENTUM), self.tau))
        wanted = {"tau": count / self.tau, "ess": count / self.tau.square(), "fixed": count * self.rule.fraction}[self.rule.budget]
        return torch.minimum(torch.maximum(wanted, count * self.rule.floor), count * self.rule.cap).floor()

    def _draw_first(self, delta, scores, budget, room):
        """The `budget` samples that arrive first, when sample i arrives at a random time whose law depends on its score.

        Exponential times with rate s_i make the draw in proportion to s without replacement (Efraimidis and Spirakis 2006). Given the time kappa at which
        the next sample would have arrived, i was drawn with probability pi_i = 1 - exp(-s_i kappa); dividing by that keeps the sum
        unbiased (Duffield et al. 2007; Kool et al. 2020, eq. 12).
        """
        if self.rule.draw == "multinomial":
            time = torch.empty_like(scores).exponential_(generator=self.generator) / scores
        else:
            time = torch.where(scores > 0, -scores, torch.inf)
        ordered, index = torch.topk(time, min(room + 1, len(scores)), largest=False, sorted=True)
        drawn = (torch.arange(room, device=scores.device) < budget) & (ordered[:room] < torch.inf)
        index = index[:room]
        weight = drawn.float()
        if self.rule.alpha and self.rule.draw == "multinomial":
            following = budget.long().clamp(max=len(ordered) - 1)
            kappa = torch.where(budget < len(ordered), ordered.gather(0, following), torch.inf)
            probability = -torch.expm1(-scores[index] * kappa)
            weight = torch.where(drawn, probability.clamp(min=TINY) ** -self.rule.alpha, 0.0)
        index, order = torch.where(drawn, index, len(scores)).sort()  # neighbours in memory stay neighbours; padding goes last
        used = index < len(scores)
        index = index.where(used, 0)
        gradient = torch.where(used[:, None], delta.index_select(0, index) * weight[order][:, None], 0.0)
        return HardSamples(index, gradient, drawn.sum(dtype=torch.int32).expand(2))

    def fit_room(self, drawn):
        """Makes the room fit `drawn` hard samples (a number read from the device a few steps late) with a margin to grow into."""
        chance = drawn**0.5  # standard deviation of a number drawn one by one, at most
        if drawn * 1.03 + 6 * chance <= self.room <= drawn * ROOM_SLACK + 16 * chance:
            return
        needed = drawn * ROOM_MARGIN + 8 * chance + 1
        self.room = self.most
        while self.room / self.room_ratio >= needed:
            self.room = int(self.room / self.room_ratio)

    def state_dict(self):
        """What a resumed run needs: tensors and plain numbers."""
        return {"tau": self.tau.clone(), "room": self.room}

    def load_state_dict(self, state):
        self.tau.copy_(state["tau"])
        self.room = int(state["room"])
