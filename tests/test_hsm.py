"""Hard sample mining on its own: the budget, the draws, and what their gradients are on average."""

import math

import pytest
import torch

from nerf.hsm import HardSampleMiner, MiningRule, by_autograd

B = 2048


DRAWS = ["thinning", "multinomial", "poisson", "top", "uniform"]


def miner(seed=0, capacity=B, **rule):
    return HardSampleMiner(MiningRule(**rule), capacity, torch.Generator().manual_seed(seed))


def draw(m, scores, count=None):
    """(rows drawn, their weights, how many) where row i has the score i."""
    hard = m.draw(scores[:, None], None if count is None else torch.tensor([count], dtype=torch.int32))
    used = int(hard.counts[0])
    assert not hard.gradient[used:].any() and not hard.index[used:].any()
    index = hard.index[:used]
    return index, hard.gradient[:used, 0] / scores[index], used


def uneven_scores(spread=1.5, count=B, seed=0):
    return (torch.randn(count, generator=torch.Generator().manual_seed(seed)) * spread).exp()


def test_budget_is_the_papers():
    scores = uneven_scores()
    g = (scores / scores.sum()).double()
    published = (1 - ((g - 1 / B) ** 2).sum() / (g**2).sum()) ** -0.5  # method as the authors' code computes tau
    assert published == pytest.approx((B * (g**2).sum()).sqrt().item(), rel=1e-6)
    tau = 0.99 + 0.01 * published.item()
    budget = int(max(0.05 * B, min(0.5 * B, B / tau)))
    exact = miner(draw="multinomial")
    assert draw(exact, scores)[2] == budget and exact.tau.item() == pytest.approx(tau, rel=1e-4)
    thinned = miner(draw="thinning", seed=1)
    drawn = draw(thinned, scores)[2]
    room = 0.5 * B  # four standard deviations of which are left free
    assert thinned.tau.item() == pytest.approx(tau, rel=1e-4) and drawn == pytest.approx(room - 4 * math.sqrt(room), abs=4.5 * math.sqrt(B / 4))


@pytest.mark.parametrize("how", ["thinning", "multinomial"])
@pytest.mark.parametrize("budget, fraction", [("tau", None), ("ess", None), ("fixed", 0.2)])
def test_budget_settles_at_its_rule(budget, fraction, how):
    scores = uneven_scores(spread=1.2)
    ess = (scores.sum() ** 2 / scores.square().sum()).item()
    m = miner(budget=budget, fraction=fraction or 0.15, cap=0.9, draw=how)
    drawn = [draw(m, scores)[2] for _ in range(1500)]
    wanted = {"tau": math.sqrt(B * ess), "ess": ess, "fixed": 0.2 * B}[budget]
    assert sum(drawn[-300:]) / 300 == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("how", DRAWS)
def test_floor_and_cap_follow_the_samples_in_use(how):
    scores = uneven_scores(count=B)
    scores[B // 2 :] = 0
    index, _, used = draw(miner(budget="fixed", fraction=0.01, draw=how), scores, B // 2)
    assert used == pytest.approx(0.05 * B / 2, abs=1 if how in ("multinomial", "top") else 35) and (index < B // 2).all()
    flat = draw(miner(draw=how), torch.ones(B))[2]
    assert flat == pytest.approx(B / 2, abs=0 if how in ("multinomial", "top") else 4 * math.sqrt(B))


@pytest.mark.parametrize("how", DRAWS)
def test_draw_has_no_repeats_and_ascends(how):
    index, weight, used = draw(miner(draw=how), uneven_scores())
    assert len(index) == used > 0
    assert (index.diff() > 0).all()
    torch.testing.assert_close(weight, torch.ones(used))


def test_top_takes_the_largest():
    scores = uneven_scores()
    index, _, _ = draw(miner(draw="top", budget="fixed", fraction=0.1), scores)
    assert set(index.tolist()) == set(scores.topk(int(0.1 * B)).indices.tolist())


def test_visible_takes_all_that_have_a_gradient():
    scores = uneven_scores()
    scores[::3] = 0
    m = miner(draw="visible")
    index, weight, used = draw(m, scores)
    assert torch.equal(index, scores.nonzero()[:, 0]) and (weight == 1).all()
    m.fit_room(used)
    assert used < m.room < 1.4 * used + 16 * math.sqrt(used)
    assert torch.equal(draw(m, scores)[0], index)


def frequencies(m, scores, draws):
    seen = torch.zeros(len(scores))
    for _ in range(draws):
        seen[draw(m, scores)[0]] += 1
    return seen / draws


def test_multinomial_draws_as_torch_multinomial():
    """Inclusion frequencies equal those of torch.multinomial without replacement, over 3,000 draws of 20 from 100."""
    scores, draws = uneven_scores(count=100), 3000
    ours = frequencies(miner(capacity=100, budget="fixed", fraction=0.2, draw="multinomial"), scores, draws)
    theirs, generator = torch.zeros(100), torch.Generator().manual_seed(1)
    for _ in range(draws):
        theirs[torch.multinomial(scores, 20, generator=generator)] += 1 / draws
    assert ours.sum().item() == pytest.approx(20, abs=1e-3)
    assert (ours - theirs).abs().max() < 4.5 * math.sqrt(0.5 / draws)  # 4.5 standard deviations of the difference of two frequencies


def test_thinning_draws_as_the_papers_multinomial():
    """By octile of the score, thinning includes samples as often as the paper's draw does: within 0.01, over 400 draws of 300 from 2,048."""
    scores = uneven_scores()
    rule = {"budget": "fixed", "fraction": 300 / B}
    order = scores.argsort()
    paper, thinned = (frequencies(miner(draw=how, **rule), scores, 400)[order].view(8, -1).mean(1) for how in ("multinomial", "thinning"))
    assert paper[-1] > 10 * paper[0]
    assert (paper - thinned).abs().max() < 0.01


def test_poisson_draws_in_proportion_up_to_certainty():
    scores, draws = uneven_scores(count=200), 4000
    m = miner(capacity=200, budget="fixed", fraction=0.25, draw="poisson")
    ordered = scores.sort(descending=True).values
    sure = next(k for k in range(200) if ordered[k] * (50 - k) / ordered[k:].sum() < 1)
    expected = (scores * (50 - sure) / ordered[sure:].sum()).clamp(max=1)
    assert (frequencies(m, scores, draws) - expected).abs().max() < 4.5 * math.sqrt(0.25 / draws) + 0.005


@pytest.mark.parametrize("how", ["thinning", "multinomial", "poisson", "uniform"])
def test_alpha_one_is_unbiased(how):
    """The weighted gradient averages to that of the whole batch; unweighted it does not, unless all are alike."""
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2, bias=False)
    inputs, target = torch.randn(120, 3) * uneven_scores(1.0, 120)[:, None], torch.randn(120, 2)

    def loss(raw):
        return (raw - target).square().mean()

    (full,) = torch.autograd.grad(loss(network(inputs)), network.weight)

    def mean_gradient(alpha, draws=4000):
        m = miner(capacity=120, budget="fixed", fraction=0.3, draw=how, alpha=alpha)
        network.zero_grad()
        for _ in range(draws):
            m.step(network, inputs, by_autograd(loss))
        return network.weight.grad / draws

    def error(gradient):
        return ((gradient - full).norm() / full.norm()).item()

    assert error(mean_gradient(alpha=1)) < 0.03
    assert error(mean_gradient(alpha=0)) > 0.05


def test_step_equals_the_full_gradient_when_all_are_drawn():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    inputs = torch.randn(64, 4)
    weight = torch.rand(64, 1)
    loss = lambda raw: (weight * raw.square()).sum()
    full = torch.autograd.grad(loss(network(inputs)), list(network.parameters()))
    mined = miner(capacity=64, draw="visible").step(network, inputs, by_autograd(loss), scale=lambda gradient: 8 * gradient)
    assert mined.hard.counts.tolist() == [64, 64] and mined.told == loss(network(inputs))
    for parameter, expected in zip(network.parameters(), full):
        torch.testing.assert_close(parameter.grad, 8 * expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["thinning", "multinomial", "poisson", "top", "visible"])
def test_nothing_hard_and_nothing_finite(how):
    for value in (0.0, torch.nan, torch.inf):
        hard = miner(draw=how, alpha=1.0).draw(torch.full((B, 4), value))
        assert hard.counts.tolist() == [0, 0]
        assert torch.isfinite(hard.gradient).all() and not hard.gradient.any()


@pytest.mark.parametrize("how", ["thinning", "multinomial", "poisson", "top"])
def test_fewer_candidates_than_the_budget(how):
    scores = torch.zeros(B)
    scores[7:10] = torch.tensor([1.0, 2.0, 3.0])
    index, weight, _ = draw(miner(draw=how, alpha=1.0), scores)
    assert index.tolist() == [7, 8, 9]
    torch.testing.assert_close(weight, torch.ones(3))


@pytest.mark.parametrize("how", DRAWS)
def test_room_follows_the_count_and_bounds_it(how):
    m = miner(draw=how)
    assert m.room == B // 2
    m.fit_room(200)
    assert 220 <= m.room < 500
    assert len(m.draw(torch.ones(B, 1)).index) == m.room
    assert draw(m, torch.ones(B))[2] <= m.room
    before = m.room
    m.fit_room(draw(m, torch.ones(B))[2])
    assert m.room > before  # the room was what held the draw back
    m.fit_room(10 * B)
    assert m.room == B // 2
    for drawn in (0, 1, 5):
        m.fit_room(drawn)
        assert m.room > drawn


def test_rooms_are_few():
    m = miner(capacity=2**20)
    m.room_ratio, rooms = 1.19, set()
    for drawn in range(2**19, 2**15, -997):
        m.fit_room(drawn)
        assert m.room > drawn or m.room == m.most
        rooms.add(m.room)
    assert len(rooms) <= 16


def test_state_continues_the_run():
    first, second = miner(), miner()
    draw(first, uneven_scores())
    first.fit_room(300)
    second.load_state_dict(first.state_dict())
    second.generator.set_state(first.generator.get_state())
    a, b = draw(first, uneven_scores(seed=1)), draw(second, uneven_scores(seed=1))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_by_autograd_is_float32_and_leaves_the_network_alone():
    raw = torch.randn(5, 4, dtype=torch.float16, requires_grad=True)
    value, delta = by_autograd(lambda r: (r**2).sum())(raw)
    assert delta.dtype == torch.float32 and raw.grad is None and not value.requires_grad
    torch.testing.assert_close(delta, 2 * raw.detach().float())
