"""The raw operator in plain PyTorch, which the compiled one is tested against.

Same name, arguments and results as in `ops`; serves where nothing can be compiled.
"""

import torch


@torch.no_grad()
def step_(parameters, gradients, first_moments, second_moments, copies, rates, sparse, control, *, beta1, beta2, eps, growth_interval):
    """One step of Adam in place; see `ops.step_`. Reads nothing on the host."""
    dense = [gradient.isfinite().all() for gradient, alone in zip(gradients, sparse, strict=True) if not alone]
    applies = torch.stack(dense).all() if dense else torch.ones((), dtype=torch.bool, device=control.device)
    finite = applies.clone()
    step, scale, good_steps = control[0] + applies, control[1].clone(), control[2].clone()
    first_correction = (1 / (1 - beta1 ** step.double())).float()
    second_correction = (1 / (1 - beta2 ** step.double()).sqrt()).float()
    lists = (parameters, gradients, first_moments, second_moments, copies, rates, sparse)
    for parameter, gradient, first, second, copy, rate, alone in zip(*lists, strict=True):
        good = gradient.isfinite()
        used = applies & good & (gradient != 0) if alone else applies
        finite &= good.all()
        g = gradient * (1 / scale)
        m = first + (1 - beta1) * (g - first)
        v = beta2 * second + (1 - beta2) * g * g
        p = parameter - rate * first_correction * m / (v.sqrt() * second_correction + eps)
        for target, value in ((parameter, p), (first, m), (second, v)):
            target.copy_(torch.where(used, value, target))
        if copy.numel():
            copy.copy_(torch.where(used, p, copy))
        if alone:
            gradient.zero_()
    good_steps = torch.where(finite, good_steps + 1, 0)
    grows = good_steps >= (growth_interval or torch.inf)
    scale = torch.where(finite, torch.where(grows, scale * 2, scale), scale / 2).clamp(1, 2**24)
    control[:3].copy_(torch.stack([step, scale, torch.where(grows, 0, good_steps)]))
