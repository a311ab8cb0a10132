"""The choice of hard samples: its budget, its probabilities, its order and its limits, against the exact twin and over many draws."""

import math

import pytest
import torch

from samplemining import ops, reference, take_rows, thin_samples

SEED = 20240915
ROWS = 20_000
LAWS = ["exponential", "linear", "uniform", "all"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def generator(seed=SEED):
    return torch.Generator().manual_seed(seed)


def uniform(*shape, seed=SEED):
    return torch.rand(*shape, generator=generator(seed))


def log_normal(sigma, rows=ROWS, seed=SEED):
    return (sigma * torch.randn(rows, generator=generator(seed), dtype=torch.float64)).exp()


def with_scores(scores, columns=4, seed=SEED):
    """[B, columns] float32 gradients in random directions whose norms are the scores."""
    direction = torch.randn(len(scores), columns, generator=generator(seed), dtype=torch.float64)
    return (direction / direction.norm(dim=1, keepdim=True) * scores[:, None]).float()


def thin(delta, noise=None, *, used=None, tau=1.0, room=None, device="cpu", **settings):
    """(index, gradient, counts, tau) of one draw on the device, on the CPU again; by default all rows are in use and fit the room."""
    noise = uniform(len(delta)) if noise is None else noise
    count = torch.tensor([len(delta) if used is None else used], dtype=torch.int32, device=device)
    tau = torch.tensor([float(tau)], device=device)
    room = 2 * len(delta) + 100 if room is None else room
    index, gradient, counts = thin_samples(delta.to(device), noise.to(device), count, tau, room, **settings)
    assert index.dtype == torch.int64 and gradient.dtype == torch.float32 and counts.dtype == torch.int32
    assert index.shape == (room,) and gradient.shape == (room, delta.shape[1]) and counts.shape == (2,)
    return index.cpu(), gradient.cpu(), counts.tolist(), tau.item()


def twin(delta, noise, *, used=None, tau=1.0, room=None, budget="tau", fraction=0.15, floor=0.05, cap=0.5, momentum=0.01, law, alpha=0.0):
    count, tau = torch.tensor([len(delta) if used is None else used], dtype=torch.int32), torch.tensor([float(tau)])
    room = 2 * len(delta) + 100 if room is None else room
    index, gradient, counts = reference.thin_samples(
        delta, noise, count, tau, room, budget, fraction, floor, cap, momentum, law, alpha
    )  # fmt: skip
    return index, gradient, counts.tolist(), tau.item()


def exactly(share):
    """Settings that make the budget this share of the rows."""
    return {"budget": "fixed", "fraction": share, "floor": 0.0, "cap": 1.0}


def probabilities(delta, **settings):
    """The pi of each row, read from the weights of a draw that keeps whatever it can (noise 0, alpha 1)."""
    index, gradient, (kept, drawn), _ = thin(delta, torch.zeros(len(delta)), alpha=1.0, **settings)
    assert kept == drawn
    pi = torch.zeros(len(delta), dtype=torch.float64)
    index = index[:kept]
    pi[index] = delta[index].abs().amax(1).double() / gradient[:kept].abs().amax(1).double()
    return pi


SCORES = {
    **{f"log-normal {sigma}": log_normal(sigma) for sigma in (0.5, 1, 2, 3)},
    "equal": torch.full((ROWS,), 0.77, dtype=torch.float64),
    "one huge": torch.cat([log_normal(1), torch.tensor([1e12], dtype=torch.float64)]),
    "mostly zero": log_normal(1) * (uniform(ROWS) < 0.4),
    "tiny": 1e-20 * log_normal(1),
    "huge": 1e20 * log_normal(1),
    "tiny and huge": torch.where(uniform(ROWS) < 0.3, 1e20, 1e-20).double() * log_normal(0.5),
    "all magnitudes": 10.0 ** (70 * uniform(ROWS).double() - 35),
}


def test_compiled_form_is_tested():
    assert ops.kernels is not reference, "the kernels were not compiled, so these tests would compare the twin with itself"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [0.002, 0.05, 0.3, 0.39, 0.9, (ROWS - 1) / ROWS])
@pytest.mark.parametrize("law", ["exponential", "linear"])
@pytest.mark.parametrize("name", SCORES)
def test_expected_count_is_the_budget(name, law, share, device):
    delta = with_scores(SCORES[name])
    pi = probabilities(delta, law=law, device=device, **exactly(share))
    positive = int((SCORES[name] > 0).sum())
    budget = math.floor(share * len(delta))
    if budget >= positive:
        assert (pi > 0).sum() == positive and (pi[pi > 0] == 1).all()
    else:
        assert pi.sum().item() == pytest.approx(budget, rel=2e-3)
        wanted, used = torch.tensor([budget]).double(), torch.tensor([len(delta)])
        truth = reference.inclusion_probability(delta.double().norm(dim=1), wanted, used, law)
        assert (pi - truth).abs().sum() < 2e-3 * budget


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("law", ["exponential", "linear"])
@pytest.mark.parametrize("score", [1.6e38, 1.8e38, 3e38])
def test_as_many_are_drawn_near_the_end_of_float32(score, law, device):
    scores = torch.full((ROWS,), score, dtype=torch.float64)
    drawn = thin(with_scores(scores, columns=1), law=law, device=device, **exactly(0.15))[2][1]
    assert abs(drawn - 0.15 * ROWS) < 4 * (0.15 * 0.85 * ROWS) ** 0.5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_budget_near_the_number_of_scores(extra, device):
    scores = torch.zeros(1000, dtype=torch.float64)
    scores[100:300] = log_normal(1, 200)
    pi = probabilities(with_scores(scores), device=device, **exactly((200 + extra + 0.5) / 1000))
    assert pi.sum().item() == pytest.approx(199 if extra < 0 else 200, rel=1e-4)
    assert (pi[100:300] == 1).all() == (extra >= 0)


@pytest.mark.parametrize("columns", [1, 3, 4, 7, 8, 16])
@pytest.mark.parametrize("rows", [1, 31, 2048, 2049, 10_000])
def test_columns_and_rows_match_twin(columns, rows):
    delta, noise = with_scores(log_normal(1, rows), columns), uniform(rows)
    settings = {"law": "exponential", "alpha": 0.5, "room": rows}
    index, gradient, counts, tau = thin(delta, noise, **settings)
    expected_index, expected_gradient, expected_counts, expected_tau = twin(delta, noise, **settings)
    assert tau == pytest.approx(expected_tau, rel=1e-4)
    assert abs(counts[1] - expected_counts[1]) <= 1 + 0.003 * rows
    if counts == expected_counts and torch.equal(index, expected_index):
        torch.testing.assert_close(gradient, expected_gradient, rtol=2e-3, atol=1e-6)
    ours, theirs = set(index[: counts[0]].tolist()), set(expected_index[: expected_counts[0]].tolist())
    assert len(ours ^ theirs) <= 0.003 * rows


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SCORES)
def test_tau_is_exact_and_follows(name, device):
    delta = with_scores(SCORES[name])
    scores = delta.double().norm(dim=1)
    exact = (len(scores) * scores.square().sum()).sqrt() / scores.sum()
    assert thin(delta, momentum=1.0, device=device)[3] == pytest.approx(max(exact.item(), 1), rel=1e-3)
    assert thin(delta, tau=3.0, device=device)[3] == pytest.approx(3 + 0.01 * (exact.item() - 3) if exact > 1.0001 else 3, rel=1e-4)
    assert thin(delta, tau=3.0, law="all", device=device)[3] == 3


def test_tau_at_the_worst_for_the_bins():
    scores = torch.where(uniform(ROWS) < 0.5, 1.0, 1.0624).double()
    exact = (ROWS * scores.square().sum()).sqrt() / scores.sum()
    assert thin(with_scores(scores), momentum=1.0)[3] == pytest.approx(exact.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"budget": "tau"}, 1 / 4),
        ({"budget": "ess"}, 1 / 16),
        ({"budget": "fixed", "fraction": 0.3}, 0.3),
        ({"budget": "ess", "floor": 0.1}, 0.1),
        ({"budget": "tau", "cap": 0.2}, 0.2),
        ({"budget": "fixed", "fraction": 0.3, "room": 2000}, (2000 - 4 * math.sqrt(2000)) / ROWS),
    ],
)
def test_budget(settings, share):
    noise, delta = torch.zeros(ROWS), with_scores(log_normal(0.01))
    _, gradient, (kept, drawn), _ = thin(delta, noise, tau=4.0, momentum=0.0, law="uniform", alpha=1.0, **settings)
    pi = delta[0].norm() / gradient[0].norm()
    assert pi.item() == pytest.approx(math.floor(share * ROWS) / ROWS, rel=1e-5)
    assert drawn == ROWS and kept == min(ROWS, settings.get("room", ROWS))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("law", LAWS)
def test_result_is_in_order_and_padded(law, device):
    delta = with_scores(log_normal(1, 9000) * (uniform(9000, seed=1) < 0.7))
    index, gradient, (kept, drawn), _ = thin(delta, used=8000, law=law, room=8500, device=device)
    assert 0 < kept == drawn < 8000
    rows = index[:kept]
    assert (rows.diff() > 0).all() and 0 <= rows[0] and rows[-1] < 8000
    assert torch.equal(gradient[:kept], delta[rows])
    assert not index[kept:].any() and not gradient[kept:].any()
    zeros = (delta[rows].norm(dim=1) == 0).sum()
    assert zeros > 0 if law == "uniform" else zeros == 0
    if law == "all":
        assert torch.equal(rows, delta[:8000].any(1).nonzero()[:, 0])


@pytest.mark.parametrize("device", DEVICES)
def test_overflow_leaves_the_last_out(device):
    delta = with_scores(log_normal(1, 5000))
    whole, *_ = thin(delta, law="all", device=device)
    index, gradient, (kept, drawn), _ = thin(delta, law="all", room=1234, device=device)
    assert (kept, drawn) == (1234, 5000)
    assert torch.equal(index, whole[:1234]) and torch.equal(gradient, delta[:1234])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    ("rows", "used", "room"), [(0, 0, 0), (0, 5, 7), (100, 0, 50), (100, -3, 50), (100, 100, 1), (100, 100, 0), (3000, 9999, 3000)]
)
def test_little_and_nothing(rows, used, room, law, device):
    delta = with_scores(log_normal(1, rows))
    index, gradient, (kept, drawn), tau = thin(delta, used=used, room=room, law=law, device=device)
    assert kept == min(drawn, room) and not index[kept:].any() and not gradient[kept:].any()
    expected = max(0, min(used, rows)) if law == "all" else 0 if room < 17 or used <= 0 else None
    assert expected is None or drawn == expected
    assert tau >= 1 and (tau == 1) == (rows == 0 or used <= 0 or law == "all")


@pytest.mark.parametrize("device", DEVICES)
def test_no_gradient_at_all(device):
    for law in ("exponential", "linear", "all"):
        *_, (kept, drawn), tau = thin(torch.zeros(5000, 4), law=law, device=device)
        assert (kept, drawn, tau) == (0, 0, 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("law", LAWS)
def test_what_is_not_finite_is_never_kept(law, device):
    delta = with_scores(log_normal(1, 6000))
    delta[::7, 1], delta[::11, 3], delta[5::13] = math.nan, -math.inf, 3e38  # the last is finite, but its norm is not
    bad = ~delta.double().norm(dim=1).float().isfinite()
    index, gradient, (kept, _), tau = thin(delta, torch.zeros(6000), law=law, momentum=1.0, device=device)
    assert kept == (~bad).sum() and torch.equal(index[:kept], (~bad).nonzero()[:, 0])
    assert gradient.isfinite().all() and math.isfinite(tau)


def test_noise_and_tau_that_are_nan():
    delta, noise = with_scores(log_normal(1, 6000)), torch.zeros(6000)
    noise[::2] = math.nan
    index, _, (kept, _), tau = thin(delta, noise, tau=math.nan)
    assert kept == 3000 and (index[:kept] % 2 == 1).all() and math.isnan(tau)
    assert probabilities(delta, tau=math.nan).sum().item() == pytest.approx(300, rel=1e-3)


def drawn_shares(delta, draws, **settings):
    """How often each row was drawn."""
    times = torch.zeros(len(delta))
    for draw in range(draws):
        index, _, (kept, drawn), _ = thin(delta, uniform(len(delta), seed=draw), **settings)
        assert kept == drawn
        times[index[:kept]] += 1
    return times / draws


@pytest.mark.parametrize("law", ["exponential", "linear", "uniform"])
def test_rows_are_drawn_with_their_probability(law):
    delta, draws = with_scores(log_normal(1.5, 2000)), 2000
    pi = probabilities(delta, law=law, **exactly(0.2))
    shares = drawn_shares(delta, draws, law=law, **exactly(0.2))
    some = (pi > 0.002) & (pi < 1)
    deviations = ((shares - pi) / (pi * (1 - pi) / draws).sqrt())[some]
    assert deviations.square().mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / int(some.sum())))  # chi-square over its freedom
    assert (shares[pi == 1] == 1).all()


def test_exponential_law_is_the_draw_without_replacement():
    scores, draws = log_normal(1.5, 4000), 400
    shares = drawn_shares(with_scores(scores), draws, **exactly(0.25))
    times = torch.zeros(4000)
    for draw in range(draws):
        times[torch.multinomial(scores, 1000, generator=generator(draw))] += 1
    octiles = scores.argsort().view(8, 500)
    torch.testing.assert_close(shares[octiles].mean(1), (times / draws)[octiles].mean(1), rtol=0, atol=0.01)


@pytest.mark.parametrize("law", ["exponential", "linear", "uniform"])
def test_alpha_one_is_unbiased(law):
    delta, draws = with_scores(log_normal(1, 3000), 2) + 0.5, 1500
    sums = torch.stack([thin(delta, uniform(3000, seed=draw), law=law, alpha=1.0)[1].double().sum(0) for draw in range(draws)])
    error = (sums.mean(0) - delta.double().sum(0)).abs()
    assert (error < 4 * sums.std(0) / math.sqrt(draws)).all()


def test_alpha_between_is_a_power():
    delta, noise = with_scores(log_normal(1)), uniform(ROWS)
    whole, half, none = (thin(delta, noise, alpha=alpha)[1] for alpha in (1.0, 0.5, 0.0))
    torch.testing.assert_close(none * whole, half.square() * none.sign() * whole.sign(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_same_input_same_result(device):
    delta, noise = with_scores(log_normal(2, 70_000)), uniform(70_000)
    first = thin(delta, noise, alpha=0.5, device=device)
    for _ in range(3):
        again = thin(delta, noise, alpha=0.5, device=device)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1]) and first[2:] == again[2:]


def test_input_that_is_not_contiguous_and_gradients():
    delta, noise = with_scores(log_normal(1)), uniform(ROWS)
    spread = torch.stack([noise, noise], 1)[:, 0]
    expected, got = thin(delta, noise), thin(delta.T.contiguous().T.requires_grad_(), spread)
    assert torch.equal(expected[0], got[0]) and torch.equal(expected[1], got[1]) and not got[1].requires_grad


def arguments(**changed):
    count = torch.tensor([8], dtype=torch.int32)
    return {"delta": torch.rand(8, 4), "noise": torch.rand(8), "count": count, "tau": torch.ones(1), "room": 8} | changed


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("delta", torch.rand(8), ValueError),
        ("delta", torch.rand(8, 17), ValueError),
        ("delta", torch.rand(8, 0), ValueError),
        ("delta", torch.rand(8, 4).half(), TypeError),
        ("noise", torch.rand(7), ValueError),
        ("noise", torch.rand(8, 1), ValueError),
        ("noise", torch.rand(8).double(), TypeError),
        ("count", torch.tensor([8]), TypeError),
        ("count", torch.tensor(8, dtype=torch.int32), ValueError),
        ("tau", torch.ones(2), ValueError),
        ("tau", torch.ones(1).double(), TypeError),
        ("room", -1, ValueError),
        ("room", 2**31, ValueError),
        ("budget", "all", ValueError),
        ("law", "top", ValueError),
        ("fraction", 1.5, ValueError),
        ("floor", -0.1, ValueError),
        ("floor", 0.6, ValueError),
        ("cap", math.nan, ValueError),
        ("momentum", 2.0, ValueError),
        ("alpha", -1.0, ValueError),
    ],
)
def test_bad_arguments_are_named(name, value, kind):
    with pytest.raises(kind, match=f"^{name} "):
        thin_samples(**arguments(**{name: value}))


def test_rows_are_taken():
    tensors = [torch.rand(50, 3), torch.rand(50), torch.rand(50, 2, 4).half(), torch.arange(50), torch.rand(50, 8).T.contiguous().T]
    index = torch.randint(50, (333,), generator=generator())
    for tensor, taken in zip(tensors, take_rows(tensors, index), strict=True):
        assert taken.dtype == tensor.dtype and torch.equal(taken, tensor[index])
    assert [taken.shape for taken in take_rows(tensors, index[:0])] == [(0, *tensor.shape[1:]) for tensor in tensors]
    assert take_rows([torch.rand(0, 3)], index[:0])[0].shape == (0, 3) and take_rows([torch.rand(5, 0)], index[:1] * 0)[0].shape == (1, 0)
    assert not take_rows([torch.rand(50, 3).requires_grad_()], index)[0].requires_grad
    for tensor, taken in zip(tensors, reference.take_rows(tensors, index), strict=True):
        assert torch.equal(taken, tensor[index])


@pytest.mark.parametrize(
    ("tensors", "index", "word", "kind"),
    [
        ([], torch.tensor([0]), "tensors must", ValueError),
        ([torch.rand(5)] * 9, torch.tensor([0]), "tensors must", ValueError),
        ([torch.rand(5), torch.rand(4)], torch.tensor([0]), r"tensors\[1\]", ValueError),
        ([torch.rand(5), torch.rand(())], torch.tensor([0]), r"tensors\[1\]", ValueError),
        ([torch.rand(5, 3).half()], torch.tensor([0]), r"tensors\[0\]", ValueError),
        ([torch.rand(5)], torch.tensor([0], dtype=torch.int32), "index must", TypeError),
        ([torch.rand(5)], torch.tensor([[0]]), "index must", ValueError),
        ([torch.rand(5)], torch.tensor([0, 5]), r"index\[1\]", IndexError),
        ([torch.rand(5)], torch.tensor([-1]), r"index\[0\]", IndexError),
    ],
)
def test_bad_rows_are_named(tensors, index, word, kind):
    with pytest.raises(kind, match=word):
        take_rows(tensors, index)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    given = [value.to(device) if isinstance(value, torch.Tensor) else value for value in arguments().values()]
    settings = ("tau", 0.15, 0.05, 0.5, 0.01, "exponential", 1.0)
    torch.library.opcheck(torch.ops.samplemining.thin_samples.default, (*given, *settings))
    tensors = [torch.rand(9, 3, device=device), torch.arange(9, device=device)]
    torch.library.opcheck(torch.ops.samplemining.take_rows.default, (tensors, torch.tensor([3, 8, 3], device=device)))
