"""The raw operator of the optimiser against its twin, and the checks of its arguments."""

import copy
import math

import pytest
import torch

from fusedadam import ops, reference, step_

SEED = 20240807
SHAPES = [(64, 33), (1,), (3,), (5,), (3, 4096), (0,)]
SETTINGS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-15, "growth_interval": 3}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


def random_tensors(shapes, device="cpu", seed=SEED):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def test_compiled_form_is_tested():
    assert ops.kernels is not reference, "the kernel was not compiled, so these tests would compare the twin with itself"


def raw_arguments(shapes=SHAPES, device="cpu", seed=SEED, sparse=None, scale=64.0):
    """The arguments of the raw operator; of the sparse gradients a third are not zero."""
    sparse = [i % 2 == 1 for i in range(len(shapes))] if sparse is None else sparse
    parameters, gradients, first, second = (random_tensors(shapes, device, seed + i) for i in range(4))
    for i, gradient in enumerate(gradients):
        if sparse[i]:
            gradient[random_tensors(shapes, device, seed + 9)[i] < 0.4] = 0
    copies = [p.half() if i % 3 else torch.empty(0, dtype=torch.float16, device=device) for i, p in enumerate(parameters)]
    rates = [torch.tensor(0.01 * (i + 1), device=device) for i in range(len(shapes))]
    control = torch.tensor([5, scale, 2, 0, 0, 0, 0, 0], dtype=torch.float32, device=device)
    return [parameters, gradients, first, [v.abs() for v in second], copies, rates, sparse, control]


def assert_matches_twin(arguments):
    twin = copy.deepcopy(arguments)
    step_(*arguments, **SETTINGS)
    reference.step_(*twin, **SETTINGS)
    for ours, truth in zip(arguments[:4], twin[:4], strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(arguments[4], twin[4], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(arguments[7][:3], twin[7][:3], rtol=0, atol=0)
    assert not arguments[7][6:].any()


@pytest.mark.parametrize("shapes", [SHAPES, [], [(100_003,), (70_000,)], [(i,) for i in range(1, 40)]])
def test_matches_twin(device, shapes):
    assert_matches_twin(raw_arguments(shapes, device))


@pytest.mark.parametrize("number", [0, 1, 4])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_matches_twin_where_a_gradient_is_not_finite(device, number, bad):
    arguments = raw_arguments(device=device)
    arguments[1][number].view(-1)[-1] = bad
    assert_matches_twin(arguments)
    assert arguments[7][1].item() == 32


def test_many_parameters_with_one_overflow_in_the_first(device):
    """More than a launch holds: what the first one saw reaches the last."""
    for sparse in (False, True):
        arguments = raw_arguments([(9,)] * 35, device, sparse=[sparse] * 35)
        arguments[1][0][8] = math.inf
        assert_matches_twin(arguments)


def test_memory_that_is_not_aligned(device):
    arguments = raw_arguments([(4099,), (4099,)], device)
    for tensors in arguments[:5]:
        for i, tensor in enumerate(tensors):
            tensors[i] = torch.cat([tensor[:1], tensor])[1:] if tensor.numel() else tensor
    assert_matches_twin(arguments)


def test_dense_gradient_that_is_not_contiguous(device):
    arguments = raw_arguments([(40, 30)], device)
    arguments[1][0] = arguments[1][0].T.contiguous().T
    assert_matches_twin(arguments)


def test_opcheck(device):
    torch.library.opcheck(torch.ops.fusedadam.step_.default, raw_arguments([(3, 5), (7,)], device), SETTINGS)


@pytest.mark.parametrize(
    ("place", "value", "word", "kind"),
    [
        (0, torch.rand(4).double(), r"parameters\[1\] must be", TypeError),
        (0, torch.rand(8)[::2], r"parameters\[1\] must be contiguous", ValueError),
        (1, torch.rand(5), r"gradients\[1\] must be of shape", ValueError),
        (1, torch.rand(8)[::2], r"gradients\[1\] must be contiguous", ValueError),
        (1, torch.rand(4).to_sparse(), r"gradients\[1\] must be a dense", ValueError),
        (2, torch.rand(3), r"first_moments\[1\]", ValueError),
        (3, torch.rand(4).half(), r"second_moments\[1\]", TypeError),
        (4, torch.rand(4), r"copies\[1\]", TypeError),
        (5, torch.rand(1), r"rates\[1\]", ValueError),
    ],
)
def test_bad_raw_arguments_are_named(place, value, word, kind):
    arguments = raw_arguments([(4,), (4,)])
    arguments[place][1] = value
    with pytest.raises(kind, match=word):
        step_(*arguments, **SETTINGS)
    arguments[place] = arguments[place][:1]
    with pytest.raises(ValueError, match="must have an entry" if place else "gradients must have an entry"):
        step_(*arguments, **SETTINGS)


@pytest.mark.parametrize(("name", "value"), [("beta1", 1.0), ("beta2", -0.1), ("eps", -1.0), ("growth_interval", 0)])
def test_bad_raw_settings_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        step_(*raw_arguments(), **SETTINGS | {name: value})
    with pytest.raises(ValueError, match="control"):
        step_(*raw_arguments()[:7], torch.zeros(7), **SETTINGS)


@pytest.mark.gpu
def test_mixed_devices_are_named():
    arguments = raw_arguments([(4,)], "cuda")
    arguments[1][0] = arguments[1][0].cpu()
    with pytest.raises(ValueError, match=r"gradients\[0\] is on"):
        step_(*arguments, **SETTINGS)
