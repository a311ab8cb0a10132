"""The raw operator of the optimiser and its documentation."""

from pathlib import Path

import torch

from kernel_build import load_kernels

from . import reference

# The float32 numbers of the control tensor, as in src/fusedadam_math.h. The first three are the state: steps that were applied, the loss
# scale, steps without an overflow since it changed. The others hold only within a step.
CONTROL = ("step", "scale", "good_steps", "applies", "first_correction", "second_correction", "overflow", "ticket")
LEAST_SCALE, GREATEST_SCALE, GREATEST_INTERVAL = 1.0, 2.0**24, 2**24
kernels = load_kernels(__package__, Path(__file__).parent) or reference


def step_(parameters, gradients, first_moments, second_moments, copies, rates, sparse, control, *, beta1, beta2, eps, growth_interval):
    """One step of Adam (Kingma and Ba 2015, algorithm 1) for K parameters, in place; two launches on CUDA for each 16 parameters.

    Where a dense gradient is not finite, nothing changes but the sparse gradients, which become zero, and the loss scale, which halves.
    Else the step number t grows by one and, with g the gradient over the loss scale, each element becomes

        m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2,  p = p - rate m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps).

    An element of a sparse parameter whose gradient is 0 keeps p, m and v, and so does one whose gradient is not finite, which also halves
    the scale; all sparse gradients are zero afterwards. After `growth_interval` steps without an overflow the scale doubles. It stays
    from 1 to 2^24. Nothing is read by the host.

    Args:
        parameters, first_moments, second_moments: lists of K float32 tensors, the same shapes; changed.
        gradients: K tensors of the same shapes; those of sparse parameters are changed, dense ones need not be contiguous.
        copies: K float16 tensors, changed: of the shape of the parameter, whose value it gets where that changed, or empty (none).
        rates: K float32 tensors [], the learning rates; one may serve many parameters.
        sparse: K bools.
        control: [8] float32, changed; see CONTROL.
        beta1, beta2: decay of the moments, from 0 to below 1; eps: not negative.
        growth_interval: 1 to 2^24, or None: the scale never grows.
    Raises:
        ValueError, TypeError: an argument of wrong shape, dtype or device, or one to be changed that is not contiguous, by name.
    """
    for i, gradient in enumerate(gradients):
        if gradient.layout != torch.strided:
            raise ValueError(f"gradients[{i}] must be a dense tensor, not {gradient.layout}")
    kernels.step_(
        parameters, gradients, first_moments, second_moments, copies, rates, sparse, control,
        beta1=beta1, beta2=beta2, eps=eps, growth_interval=growth_interval,
    )  # fmt: skip


def register_shapes():
    """Tells torch that the operator has no result, for torch.compile, export and opcheck."""

    @torch.library.register_fake("fusedadam::step_")
    def _(*arguments, **settings):
        return None


if kernels is not reference:
    register_shapes()
