"""The raw operators in plain PyTorch: the polynomials written out one by one, which the compiled recurrence is tested against.

Same names, arguments and results as in `ops`; serves where nothing can be compiled.
"""

import torch


def sh_encode_forward(directions, degree, dtype):
    """[M, 3] -> [M, degree^2] of `dtype`; differentiable by autograd. The constants are square roots of rationals over pi."""
    x, y, z = directions.unbind(1)
    one = torch.ones_like(x)
    columns = [
        0.28209479177387814 * one,
        -0.4886025119029199 * y,
        0.4886025119029199 * z,
        -0.4886025119029199 * x,
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.31539156525252005 * (3 * z * z - 1),
        -1.0925484305920792 * x * z,
        0.5462742152960396 * (x * x - y * y),
        -0.5900435899266435 * y * (3 * x * x - y * y),
        2.890611442640554 * x * y * z,
        -0.4570457994644658 * y * (5 * z * z - 1),
        0.3731763325901154 * z * (5 * z * z - 3),
        -0.4570457994644658 * x * (5 * z * z - 1),
        1.445305721320277 * z * (x * x - y * y),
        -0.5900435899266435 * x * (x * x - 3 * y * y),
    ]
    return torch.stack(columns[: degree**2], 1).to(dtype)


def sh_encode_backward(grad, directions, degree):
    """[M, degree^2] -> [M, 3]: autograd through `sh_encode_forward`."""
    if degree == 1:  # a constant, which autograd does not differentiate
        return torch.zeros_like(directions)
    with torch.enable_grad():
        variable = directions.detach().requires_grad_()
        output = sh_encode_forward(variable, degree, directions.dtype)
        return torch.autograd.grad(output, variable, grad.to(directions.dtype))[0]
