"""The optimiser against torch.optim.Adam and against its own stated properties; on a GPU: test_fusedadam_cuda.py; its kernels alone: test_fusedadam_step.py."""

import copy
import math

import pytest
import torch

from fusedadam import FusedAdam, ops

SEED = 20240807
SHAPES = [(64, 33), (1,), (3,), (5,), (3, 4096), (0,)]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


def random_tensors(shapes, device="cpu", seed=SEED):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def random_parameters(shapes=SHAPES, device="cpu"):
    return [torch.nn.Parameter(tensor) for tensor in random_tensors(shapes, device)]


def give(optimizer, gradients):
    """Sets the gradients of all parameters, multiplied by the loss scale."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.copy_(optimizer.scale(gradient))


def run(optimizer, shapes, steps, first=0):
    for step in range(first, first + steps):
        give(optimizer, random_tensors(shapes, optimizer.device, SEED + 1 + step))
        optimizer.step()


def held(optimizer):
    """Copies of everything that a step may change, less the gradients."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = [optimizer.state[parameter][name] for parameter in parameters for name in ("exp_avg", "exp_avg_sq")]
    return [tensor.detach().clone() for tensor in (*parameters, *moments, *optimizer._copies.values(), optimizer.control[0])]


def assert_same(ours, truth):
    torch.testing.assert_close(ours, truth, rtol=0, atol=0, equal_nan=True)


def step_number(optimizer):
    return optimizer.control[ops.CONTROL.index("step")].item()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("scale", [1.0, 3000.0])
def test_equals_adam_of_torch(device, sparse, scale):
    parameters = random_parameters(device=device)
    truth = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    ours = FusedAdam([{"params": parameters, "sparse": sparse}], lr=0.01, scale=scale, growth_interval=20)
    adam = torch.optim.Adam(truth, lr=0.01, eps=1e-15)
    for step in range(50):
        gradients = random_tensors(SHAPES, device, SEED + 1 + step)
        give(ours, gradients)
        for parameter, gradient in zip(truth, gradients, strict=True):
            parameter.grad = gradient
        ours.step()
        adam.step()
    assert ours.loss_scale.item() == 4 * scale and step_number(ours) == 50
    torch.testing.assert_close(parameters, truth, rtol=1e-5, atol=1e-5)
    for parameter, expected in zip(parameters, truth, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(ours.state[parameter][name], adam.state[expected][name], rtol=1e-5, atol=1e-7)


def test_sparse_elements_without_gradient_are_left_alone(device):
    (table,) = random_parameters([(1003, 2)], device)
    optimizer = FusedAdam([{"params": [table], "sparse": True}], lr=0.01)
    half = optimizer.half_copy(table)
    run(optimizer, [(1003, 2)], 3)
    before, moments = table.detach().clone(), copy.deepcopy(dict(optimizer.state[table]))
    (gradient,) = random_tensors([(1003, 2)], device)
    touched = torch.rand(1003, 2, generator=torch.Generator().manual_seed(SEED)).to(device) < 0.3
    touched[100:500] = False
    gradient[~touched] = 0
    gradient[100, 0] = -0.0
    give(optimizer, [gradient])
    optimizer.step()
    assert_same(table.detach()[~touched], before[~touched])
    assert (table.detach()[touched] != before[touched]).all()
    for name in ("exp_avg", "exp_avg_sq"):
        assert_same(optimizer.state[table][name][~touched], moments[name][~touched])
        assert (optimizer.state[table][name][touched] != moments[name][touched]).all()
    assert_same(half, table.detach().half())
    assert_same(table.grad, torch.zeros_like(table.grad))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_step_with_a_non_finite_dense_gradient_changes_nothing(device, bad):
    parameters = random_parameters(device=device)
    optimizer = FusedAdam([{"params": parameters[:4]}, {"params": parameters[4:], "sparse": True}], lr=0.01, scale=1024.0)
    optimizer.half_copy(parameters[0])
    run(optimizer, SHAPES, 2)
    before = held(optimizer)
    give(optimizer, random_tensors(SHAPES, device))
    parameters[3].grad[4] = bad
    optimizer.step()
    assert_same(held(optimizer), before)
    assert optimizer.loss_scale.item() == 512
    assert not parameters[4].grad.any()
    run(optimizer, SHAPES, 1)
    assert step_number(optimizer) == 3 and optimizer.loss_scale.item() == 512
    assert not torch.equal(parameters[0].detach(), before[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_sparse_element_is_left_alone(device, bad):
    dense, table = random_parameters([(7,), (501, 2)], device)
    optimizer = FusedAdam([{"params": [dense]}, {"params": [table], "sparse": True}], lr=0.01, scale=1024.0, growth_interval=1)
    before = table.detach().clone()
    give(optimizer, random_tensors([(7,), (501, 2)], device))
    table.grad[250, 1] = table.grad[500, 1] = bad
    optimizer.step()
    same = table.detach() == before
    assert same.nonzero().tolist() == [[250, 1], [500, 1]]
    assert not table.grad.any() and table.isfinite().all() and optimizer.state[table]["exp_avg"].isfinite().all()
    assert optimizer.loss_scale.item() == 512 and step_number(optimizer) == 1


def test_scale_grows_and_stays_within_its_limits(device):
    (parameter,) = random_parameters([(4,)], device)
    optimizer = FusedAdam([parameter], lr=0.01, scale=2.0**22, growth_interval=2)
    seen = []
    for _ in range(6):
        run(optimizer, [(4,)], 1)
        seen.append(math.log2(optimizer.loss_scale.item()))
    assert seen == [22, 23, 23, 24, 24, 24]
    for _ in range(26):
        give(optimizer, [torch.full((4,), math.nan, device=device)])
        optimizer.step()
    assert optimizer.loss_scale.item() == 1 and step_number(optimizer) == 6
    run(optimizer, [(4,)], 1)
    give(optimizer, [torch.full((4,), math.inf, device=device)])
    optimizer.step()
    run(optimizer, [(4,)], 1)
    assert optimizer.loss_scale.item() == 1  # the counting of good steps began anew
    run(optimizer, [(4,)], 1)
    assert optimizer.loss_scale.item() == 2


def test_scale_without_growth(device):
    (parameter,) = random_parameters([(4,)], device)
    optimizer = FusedAdam([parameter], lr=0.01, growth_interval=None)
    run(optimizer, [(4,)], 5)
    assert optimizer.loss_scale.item() == 1
    assert optimizer.scale(torch.ones(3, dtype=torch.float16, device=device)).dtype == torch.float16


def test_half_copy_follows_its_parameter(device):
    parameters = random_parameters(device=device)
    optimizer = FusedAdam(parameters, lr=0.1)
    halves = [optimizer.half_copy(parameter) for parameter in parameters]
    assert optimizer.half_copy(parameters[0]) is halves[0]
    for _ in range(3):
        assert_same(halves, [parameter.detach().half() for parameter in parameters])
        run(optimizer, SHAPES, 1)
    with torch.no_grad():
        parameters[0].zero_()
    optimizer.refresh_copies()
    assert not halves[0].any()
    with pytest.raises(ValueError, match="not one of this optimizer"):
        optimizer.half_copy(torch.zeros(3, device=device))


def make(device, shapes=SHAPES, seed=SEED, **settings):
    parameters = [torch.nn.Parameter(tensor) for tensor in random_tensors(shapes, device, seed)]
    optimizer = FusedAdam([{"params": parameters[:4]}, {"params": parameters[4:], "sparse": True}], lr=0.01, scale=256.0, **settings)
    optimizer.half_copy(parameters[0])
    return parameters, optimizer


def test_resume_equals_not_having_stopped(device, tmp_path):
    parameters, optimizer = make(device, growth_interval=3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    for step in range(4):
        run(optimizer, SHAPES, 1, step)
        schedule.step()
    torch.save([[parameter.detach() for parameter in parameters], optimizer.state_dict(), schedule.state_dict()], tmp_path / "state.pt")
    saved, state, schedule_state = torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu")
    others, other = make(device, seed=SEED + 7, growth_interval=3)
    other_schedule = torch.optim.lr_scheduler.LambdaLR(other, lambda step: 0.9**step)
    tensors = [*(other.state[p][name] for p in others for name in ("exp_avg", "exp_avg_sq")), other.control]
    tensors += [*(group["lr"] for group in other.param_groups), other.half_copy(others[0]), others[4].grad]
    places = [tensor.data_ptr() for tensor in tensors]
    torch._foreach_copy_([parameter.detach() for parameter in others], saved)
    other.load_state_dict(state)
    other_schedule.load_state_dict(schedule_state)
    assert_same(held(other), held(optimizer))
    for step in range(4, 8):
        for each, plan in ((optimizer, schedule), (other, other_schedule)):
            run(each, SHAPES, 1, step)
            plan.step()
    assert_same(held(other), held(optimizer))
    assert_same(other.control, optimizer.control)
    assert other.loss_scale.item() == 1024
    assert [tensor.data_ptr() for tensor in tensors] == places


def test_state_has_the_layout_of_torch():
    parameters, optimizer = make("cpu")
    run(optimizer, SHAPES, 2)
    adam = torch.optim.Adam([{"params": parameters[:4]}, {"params": parameters[4:]}])
    adam.step()
    ours, truth = optimizer.state_dict(), adam.state_dict()
    assert {number: set(entries) for number, entries in ours["state"].items()} == {n: set(e) for n, e in truth["state"].items()}
    assert [group["params"] for group in ours["param_groups"]] == [group["params"] for group in truth["param_groups"]]
    assert ours["state"][0]["step"].item() == 2


def test_the_loss_scale_goes_on_where_both_runs_have_one():
    scales = (2.0**16, 2000), (2.0**10, 500), (1.0, None)
    growing, other, fixed = (FusedAdam(random_parameters(), lr=0.1, scale=scale, growth_interval=interval) for scale, interval in scales)
    state = copy.deepcopy(growing.state_dict())
    other.load_state_dict(state)
    assert other.loss_scale.item() == 2**16
    growing.load_state_dict(copy.deepcopy(fixed.state_dict()))
    fixed.load_state_dict(state)
    assert growing.loss_scale.item() == 2**16 and fixed.loss_scale.item() == 1


def test_state_that_does_not_fit_is_refused():
    _, optimizer = make("cpu")
    before = held(optimizer)
    with pytest.raises(ValueError, match="no control tensor"):
        optimizer.load_state_dict(torch.optim.Adam(random_parameters()).state_dict())
    with pytest.raises(ValueError, match="groups of"):
        optimizer.load_state_dict(FusedAdam(random_parameters(), lr=0.1).state_dict())
    with pytest.raises(ValueError, match="eps of group 0"):
        optimizer.load_state_dict(make("cpu", eps=1e-8)[1].state_dict())
    with pytest.raises(ValueError, match="exp_avg of parameter 5"):
        optimizer.load_state_dict(make("cpu", [*SHAPES[:5], (9,)])[1].state_dict())
    assert_same(held(optimizer), before)


def test_schedule_fills_the_learning_rate_in_place(device):
    (parameter,) = random_parameters([(4,)], device)
    optimizer = FusedAdam([{"params": [parameter]}, {"params": [], "lr": 0.5}], lr=0.1)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    before = parameter.detach().clone()
    give(optimizer, [torch.ones(4, device=device)])
    optimizer.step()
    torch.testing.assert_close(before - parameter.detach(), torch.full_like(before, 0.1))
    schedule.step()
    assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates, strict=True))
    torch.testing.assert_close(torch.stack(rates).cpu(), torch.tensor([0.05, 0.25]))
    before = parameter.detach().clone()
    give(optimizer, [torch.ones(4, device=device)])
    optimizer.step()
    torch.testing.assert_close(before - parameter.detach(), torch.full_like(before, 0.05))


def test_parameters_without_gradient_and_empty_groups(device):
    parameters = random_parameters([(4,), (6,)], device)
    optimizer = FusedAdam([{"params": parameters}, {"params": [], "sparse": True}], lr=0.1)
    before = [parameter.detach().clone() for parameter in parameters]
    parameters[1].grad = torch.ones(6, device=device)
    optimizer.step()
    assert_same(parameters[0].detach(), before[0])
    assert not torch.equal(parameters[1].detach(), before[1])
    optimizer.zero_grad()
    assert parameters[1].grad is None
    optimizer.step()
    assert step_number(optimizer) == 2
    FusedAdam([{"params": []}], lr=0.1).step()


def test_gradient_buffer_of_a_sparse_parameter_stays(device):
    (table,) = random_parameters([(50, 2)], device)
    optimizer = FusedAdam([{"params": [table], "sparse": True}], lr=0.1)
    buffer = table.grad
    assert buffer.dtype == torch.float32 and not buffer.any()
    table[:10].square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert table.grad is buffer and not buffer.any()
    table.grad = None
    with pytest.raises(ValueError, match="was replaced"):
        optimizer.step()


def test_older_values_cannot_be_differentiated_through():
    (parameter,) = random_parameters([(4,)])
    optimizer = FusedAdam([parameter], lr=0.1)
    result = parameter.square().sum()
    parameter.grad = torch.ones(4)
    optimizer.step()
    with pytest.raises(RuntimeError, match="inplace"):
        result.backward()


def test_bad_settings_are_named():
    (parameter,) = random_parameters([(4, 3)])
    with pytest.raises(ValueError, match="parameter 1 of group 0.*contiguous"):
        FusedAdam([parameter, torch.nn.Parameter(torch.rand(3, 4).T)], lr=0.1)
    with pytest.raises(TypeError, match="parameter 0 of group 1 must be float32"):
        FusedAdam([{"params": [parameter]}, {"params": [parameter.detach().double()]}], lr=0.1)
    with pytest.raises(TypeError, match="must be a tensor"):
        FusedAdam([("name", parameter)], lr=0.1)
    with pytest.raises(ValueError, match="not eps"):
        FusedAdam([{"params": [parameter], "eps": 1e-8}], lr=0.1)
    bad = {"lr": [-1, math.nan], "betas": [(0.9, 1.0)], "eps": [-1.0], "scale": [0.5, 2.0**25], "growth_interval": [0, 2**25]}
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ValueError, match=name):
                FusedAdam([parameter], **({"lr": 0.1} | {name: value}))
