"""Hard sample mining on its own: the budget, the four draws, and what their gradients are on average."""

import math

import pytest
import torch

from nerf.hsm import HardSampleMiner, MiningRule, loss_gradient

B = 2048


def miner(seed=0, capacity=B, **rule):
    return HardSampleMiner(MiningRule(**rule), capacity, torch.Generator().manual_seed(seed))


def uneven_scores(spread=1.5, count=B, seed=0):
    return (torch.randn(count, generator=torch.Generator().manual_seed(seed)) * spread).exp()


def test_budget_is_the_papers():
    scores = uneven_scores()
    g = (scores / scores.sum()).double()
    published = (1 - ((g - 1 / B) ** 2).sum() / (g**2).sum()) ** -0.5  # method as the authors' code computes tau
    drawn = miner()
    hard = drawn.draw(scores)
    tau = 0.99 + 0.01 * published
    assert drawn.tau.item() == pytest.approx(tau.item(), rel=1e-4)
    assert hard.count == int(max(0.05 * B, min(0.5 * B, B / tau.item())))
    assert published == pytest.approx((B * (g**2).sum()).sqrt().item(), rel=1e-6)


@pytest.mark.parametrize("budget, fraction", [("tau", None), ("ess", None), ("fixed", 0.2)])
def test_budget_settles_at_its_rule(budget, fraction):
    scores = uneven_scores(spread=1.2)
    ess = (scores.sum() ** 2 / scores.square().sum()).item()
    m = miner(budget=budget, fraction=fraction or 0.15, cap=0.9)
    for _ in range(1500):
        hard = m.draw(scores)
    wanted = {"tau": math.sqrt(B * ess), "ess": ess, "fixed": 0.2 * B}[budget]
    assert hard.count.item() == pytest.approx(wanted, rel=0.02)


def test_floor_and_cap_follow_the_samples_in_use():
    scores = uneven_scores(count=B)
    scores[B // 2 :] = 0
    flat = miner().draw(torch.ones(B))
    assert flat.count == B // 2
    used = miner(budget="fixed", fraction=0.01).draw(scores, torch.tensor(B // 2))
    assert used.count == int(0.05 * B / 2)
    assert (used.index[used.weight > 0] < B // 2).all()


@pytest.mark.parametrize("draw", ["multinomial", "poisson", "top", "uniform"])
def test_draw_has_no_repeats_and_ascends(draw):
    hard = miner(draw=draw).draw(uneven_scores())
    chosen = hard.index[hard.weight > 0]
    assert len(chosen) == hard.count > 0
    assert (chosen.diff() > 0).all()
    assert (hard.weight[hard.weight > 0] == 1).all()


def test_top_takes_the_largest():
    scores = uneven_scores()
    hard = miner(draw="top", budget="fixed", fraction=0.1).draw(scores)
    assert set(hard.index[hard.weight > 0].tolist()) == set(scores.topk(int(0.1 * B)).indices.tolist())


def test_multinomial_draws_as_torch_multinomial():
    """Inclusion frequencies equal those of torch.multinomial without replacement, over 3,000 draws of 20 from 100."""
    scores, draws = uneven_scores(count=100), 3000
    m = miner(capacity=100, budget="fixed", fraction=0.2)
    ours, theirs = torch.zeros(100), torch.zeros(100)
    generator = torch.Generator().manual_seed(1)
    for _ in range(draws):
        hard = m.draw(scores)
        ours[hard.index[hard.weight > 0]] += 1
        theirs[torch.multinomial(scores, 20, generator=generator)] += 1
    assert ours.sum() == 20 * draws
    assert (ours - theirs).abs().max() / draws < 4.5 * math.sqrt(0.5 / draws)  # 4.5 standard deviations of the difference of two frequencies


def test_poisson_draws_in_proportion_up_to_certainty():
    scores, draws = uneven_scores(count=200), 4000
    m = miner(capacity=200, budget="fixed", fraction=0.25, draw="poisson")
    seen = torch.zeros(200)
    for _ in range(draws):
        hard = m.draw(scores)
        seen[hard.index[hard.weight > 0]] += 1
    ordered = scores.sort(descending=True).values
    sure = next(k for k in range(200) if ordered[k] * (50 - k) / ordered[k:].sum() < 1)
    expected = (scores * (50 - sure) / ordered[sure:].sum()).clamp(max=1)
    assert (seen / draws - expected).abs().max() < 4.5 * math.sqrt(0.25 / draws)
    assert expected.sum().item() == pytest.approx(50, rel=1e-4)


@pytest.mark.parametrize("draw", ["multinomial", "poisson", "uniform"])
def test_alpha_one_is_unbiased(draw):
    """The weighted gradient averages to that of the whole batch; unweighted it does not, unless all are alike."""
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2, bias=False)
    inputs, target = torch.randn(120, 3) * uneven_scores(1.0, 120)[:, None], torch.randn(120, 2)

    def loss(raw):
        return (raw - target).square().mean()

    (full,) = torch.autograd.grad(loss(network(inputs)), network.weight)

    def mean_gradient(alpha, draws=4000):
        m = miner(capacity=120, budget="fixed", fraction=0.3, draw=draw, alpha=alpha)
        network.zero_grad()
        for _ in range(draws):
            m.step(network, inputs, loss)
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
    mined = miner(capacity=64, budget="fixed", fraction=1.0, cap=1.0).step(network, inputs, loss, scale=lambda gradient: 8 * gradient)
    assert mined.hard.count == 64
    for parameter, expected in zip(network.parameters(), full):
        torch.testing.assert_close(parameter.grad, 8 * expected, rtol=1e-4, atol=1e-5)


def test_nothing_hard_and_nothing_finite():
    for scores in (torch.zeros(B), torch.full((B,), torch.nan)):
        for draw in ("multinomial", "poisson", "top"):
            hard = miner(draw=draw, alpha=1.0).draw(scores)
            assert hard.count == 0
            assert (hard.weight == 0).all()


def test_fewer_candidates_than_the_budget():
    scores = torch.zeros(B)
    scores[7:10] = torch.tensor([1.0, 2.0, 3.0])
    for draw in ("multinomial", "poisson", "top"):
        hard = miner(draw=draw, alpha=1.0).draw(scores)
        assert hard.index[hard.weight > 0].tolist() == [7, 8, 9]
        torch.testing.assert_close(hard.weight[hard.weight > 0], torch.ones(3))


def test_room_follows_the_count_and_bounds_it():
    m = miner()
    assert m.room == B // 2
    m.fit_room(200)
    assert 220 <= m.room < 300
    assert len(m.draw(torch.ones(B)).index) == m.room
    assert m.draw(torch.ones(B)).count == m.room
    m.fit_room(10 * B)
    assert m.room == B // 2


def test_state_continues_the_run():
    first, second = miner(), miner()
    first.draw(uneven_scores())
    first.fit_room(300)
    second.load_state_dict(first.state_dict())
    second.generator.set_state(first.generator.get_state())
    a, b = first.draw(uneven_scores(seed=1)), second.draw(uneven_scores(seed=1))
    assert torch.equal(a.index, b.index) and torch.equal(a.weight, b.weight)


def test_loss_gradient_is_float32_and_leaves_the_network_alone():
    raw = torch.randn(5, 4, dtype=torch.float16, requires_grad=True)
    value, delta = loss_gradient(lambda r: (r**2).sum(), raw)
    assert delta.dtype == torch.float32 and raw.grad is None and not value.requires_grad
    torch.testing.assert_close(delta, 2 * raw.detach().float())
