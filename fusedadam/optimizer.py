"""The optimiser: what it keeps for each parameter, and its state."""

import math

import torch

from .ops import CONTROL, GREATEST_INTERVAL, GREATEST_SCALE, LEAST_SCALE, step_

COMMON = ("betas", "eps", "sparse")  # settings that a captured graph holds by value, so that a loaded state cannot change them


class FusedAdam(torch.optim.Optimizer):
    """Adam with a loss scale on the device, half copies of parameters, and a rule for sparse gradients, all in one pass over the elements.

    A step never waits for the device and keeps its addresses, so that it can be captured in a CUDA graph; the learning rate of each group
    is a float32 tensor [] on the device, which schedulers fill in place. The arithmetic is that of `step_`.

    Dense groups are treated as by torch.optim.Adam, but that the bias correction is by the number of all steps also where a parameter had no gradient in some of
    them: one that joins late begins with longer steps. In sparse groups an element whose gradient is 0 keeps its value and its moments, as
    the entries of a hash table that no sample came by (Mueller et al. 2022, Instant Neural Graphics Primitives, section 4); the bias
    correction is the same there. A sparse parameter has one gradient buffer for good, made of zeros here, which `step`
    leaves all zero: write or accumulate into it, never replace it.

    Args:
        groups: contiguous float32 parameters of one device, or dicts {"params": [...], "sparse": bool, "lr": float}, the last two optional.
        lr: learning rate of groups without their own.
        betas: decay of the two moments, from 0 to below 1; eps: added to the root of the second.
        scale: first loss scale, from 1 to 2^24.
        growth_interval: steps without an overflow after which the scale doubles, 1 to 2^24; None: it never grows.
    Raises:
        ValueError, TypeError: a parameter or a setting that does not fit, by name.
    """

    def __init__(self, groups, lr, betas=(0.9, 0.999), eps=1e-15, scale=1.0, growth_interval=2000):
        groups = list(groups)
        if groups and not any(isinstance(group, dict) for group in groups):
            groups = [{"params": groups}]
        groups = [{**group, "params": _listed(group["params"])} for group in groups]
        _check_settings(betas, eps, scale, growth_interval)
        first = next((parameter for group in groups for parameter in group["params"]), None)
        self.device = first.device if isinstance(first, torch.Tensor) else torch.device("cpu")
        self.betas, self.eps, self.growth_interval = tuple(betas), eps, growth_interval
        self.control = torch.zeros(len(CONTROL), device=self.device)
        self.control[CONTROL.index("scale")] = scale
        self.loss_scale = self.control[CONTROL.index("scale")]  # float32 [], a view
        self._buffers, self._copies = {}, {}  # parameter -> gradient buffer, half copy
        self._no_copy = torch.empty(0, dtype=torch.float16, device=self.device)
        super().__init__(groups, {"lr": lr, "betas": self.betas, "eps": eps, "sparse": False})

    def add_param_group(self, param_group):
        """Adds a group, as those of the constructor."""
        number = len(self.param_groups)
        unknown = set(param_group) - {"params", "sparse", "lr"}
        if unknown:
            raise ValueError(f"group {number} may set params, sparse and lr, not {min(unknown)}, which all groups share")
        lr = param_group.get("lr", self.defaults["lr"])
        if not 0 <= float(lr) < math.inf:
            raise ValueError(f"lr must be finite and not negative, not {float(lr)}")
        parameters = _listed(param_group["params"])
        for i, parameter in enumerate(parameters):
            _check_parameter(f"parameter {i} of group {number}", parameter, self.device)
        rate = torch.full((), float(lr), dtype=torch.float32, device=self.device)
        super().add_param_group({**param_group, "params": parameters, "lr": rate})
        for parameter in parameters:
            moments = {name: torch.zeros_like(parameter, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
            self.state[parameter] = {"step": self.control[CONTROL.index("step")], **moments}
            if param_group.get("sparse", False):
                parameter.grad = self._buffers[parameter] = torch.zeros_like(parameter, requires_grad=False)

    def scale(self, tensor):
        """The tensor times the loss scale, in its own dtype: what backward starts from."""
        return tensor * self.loss_scale

    @torch.no_grad()
    def step(self):
        """Applies the gradients, or skips the step where a dense one is not finite; see `step_`. Dense parameters without one are left out.

        Raises:
            ValueError: the gradient of a sparse parameter is not the buffer that was made for it.
        """
        leaves = [(parameter, group) for group in self.param_groups for parameter in group["params"] if self._has_gradient(parameter)]
        parameters = [parameter for parameter, _ in leaves]
        copies = [self._copies.get(parameter, self._no_copy) for parameter in parameters]
        step_(
            parameters,
            [parameter.grad for parameter in parameters],
            [self.state[parameter]["exp_avg"] for parameter in parameters],
            [self.state[parameter]["exp_avg_sq"] for parameter in parameters],
            copies,
            [group["lr"] for _, group in leaves],
            [group["sparse"] for _, group in leaves],
            self.control,
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps,
            growth_interval=self.growth_interval,
        )
        torch.autograd.graph.increment_version([*parameters, *copies])  # so that a backward pass through older values is refused

    def _has_gradient(self, parameter):
        buffer = self._buffers.get(parameter)
        if buffer is not None and parameter.grad is not buffer:
            raise ValueError(
                f"the gradient of the sparse parameter of shape {list(parameter.shape)} was replaced: it keeps the buffer that FusedAdam "
                "made (FusedAdam.zero_grad leaves it, Module.zero_grad does not)"
            )
        return parameter.grad is not None

    def zero_grad(self):
        """Drops the dense gradients; the sparse ones are zero after every step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if not group["sparse"]:
                    parameter.grad = None

    def half_copy(self, parameter):
        """A float16 tensor of the parameter's shape that `step` keeps equal to it; the same one at every call.

        Made at the first call: a graph captured before does not write it. Raises ValueError for a parameter of another optimiser.
        """
        if parameter not in self.state:
            raise ValueError(f"parameter of shape {list(parameter.shape)} is not one of this optimizer's")
        if parameter not in self._copies:
            self._copies[parameter] = parameter.detach().to(torch.float16)
        return self._copies[parameter]

    @torch.no_grad()
    def refresh_copies(self):
        """Fills the half copies anew, after others changed the parameters."""
        for parameter, copy in self._copies.items():
            copy.copy_(parameter)

    def state_dict(self):
        """That of torch.optim.Adam, the control tensor and growth_interval; tensors and plain types. The tensors are the optimiser's own, not copies."""
        return super().state_dict() | {"control": self.control, "growth_interval": self.growth_interval}

    @torch.no_grad()
    def load_state_dict(self, state_dict):
        """Copies a state, of any device, into the tensors that are there; their addresses stay. The half copies are filled anew from the
        parameters, which have to be loaded before. A state whose loss scale never grows has none worth taking, nor has one that never grows use for another.

        Raises:
            ValueError: the state is of other groups, shapes or settings; nothing was changed.
        """
        self._check_state(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for key, value in saved.items():
                if isinstance(group.get(key), torch.Tensor):
                    group[key].copy_(torch.as_tensor(value))
                elif key != "params":
                    group[key] = value.to(self.device, copy=True) if isinstance(value, torch.Tensor) else value
            for parameter, number in zip(group["params"], saved["params"], strict=True):
                for name in ("exp_avg", "exp_avg_sq"):
                    self.state[parameter][name].copy_(state_dict["state"][number][name])
        scale = self.loss_scale.clone()
        self.control.copy_(state_dict["control"])
        if (state_dict["growth_interval"] is None) != (self.growth_interval is None):
            self.loss_scale.copy_(scale)
        self.refresh_copies()

    def _check_state(self, state):
        if not {"control", "growth_interval", "param_groups", "state"} <= set(state) or state["control"].shape != self.control.shape:
            raise ValueError("the state is not one of FusedAdam: it has no control tensor of this shape, or no param_groups or state")
        sizes = [[len(group["params"]) for group in groups] for groups in (self.param_groups, state["param_groups"])]
        if sizes[0] != sizes[1]:
            raise ValueError(f"the state has groups of {sizes[1]} parameters, this optimizer of {sizes[0]}")
        for i, (group, saved) in enumerate(zip(self.param_groups, state["param_groups"], strict=True)):
            for key in COMMON:
                if saved[key] != group[key]:
                    raise ValueError(f"{key} of group {i} is {saved[key]} in the state but {group[key]} in this optimizer")
            for parameter, number in zip(group["params"], saved["params"], strict=True):
                for name in ("exp_avg", "exp_avg_sq"):
                    shape, wanted = list(state["state"][number][name].shape), list(parameter.shape)
                    if shape != wanted:
                        raise ValueError(f"{name} of parameter {number} is of shape {shape} in the state, the parameter of {wanted}")


def _listed(parameters):
    return [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)


def _check_parameter(name, parameter, device):
    if not isinstance(parameter, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(parameter).__name__}")
    if parameter.dtype != torch.float32:
        raise TypeError(f"{name} must be float32, not {parameter.dtype}")
    if parameter.device != device:
        raise ValueError(f"{name} is on {parameter.device}, the first one on {device}")
    if not parameter.is_contiguous():
        raise ValueError(f"{name}, of shape {list(parameter.shape)}, must be contiguous")


def _check_settings(betas, eps, scale, growth_interval):
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers from 0 to below 1, not {betas}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and not negative, not {eps}")
    if not LEAST_SCALE <= scale <= GREATEST_SCALE:
        raise ValueError(f"scale must be from 1 to 2^24, not {scale}")
    if growth_interval is not None and not 1 <= growth_interval <= GREATEST_INTERVAL:
        raise ValueError(f"growth_interval must be from 1 to 2^24, or None, not {growth_interval}")
