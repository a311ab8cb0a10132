"""The raw operators in plain PyTorch, from the closed form of the polynomials, which the compiled recurrences are tested against.

Same names, arguments and results as in `ops`; serves where nothing can be compiled.
"""

from math import comb, factorial, perm, pi, sqrt

import torch


def sh_encode_forward(directions, degree, dtype):
    """[M, 3] -> [M, degree^2] of `dtype`; differentiable by autograd."""
    x, y, z = directions.unbind(1)
    cosine, sine = [torch.ones_like(x), x], [torch.zeros_like(x), y]  # (x + i y)^m
    for _ in range(2, degree):
        cosine, sine = [*cosine, x * cosine[-1] - y * sine[-1]], [*sine, x * sine[-1] + y * cosine[-1]]
    columns = []
    for order in range(degree):
        for m in range(-order, order + 1):
            turn = cosine[m] if m >= 0 else sine[-m]
            columns.append(polynomial(legendre_derivative(order, abs(m)), z) * turn)
    return torch.stack(columns, 1).to(dtype)


def sh_encode_backward(grad, directions, degree):
    """[M, degree^2] -> [M, 3]: autograd through `sh_encode_forward`."""
    if degree == 1:  # a constant, which autograd does not differentiate
        return torch.zeros_like(directions)
    with torch.enable_grad():
        variable = directions.detach().requires_grad_()
        output = sh_encode_forward(variable, degree, directions.dtype)
        return torch.autograd.grad(output, variable, grad.to(directions.dtype))[0]


def legendre_derivative(order, m):
    """Coefficients of N_lm (-1)^m d^m P_l / dz^m, the constant one first, from P_l = 2^-l sum_k (-1)^k C(l, k) C(2l - 2k, l) z^(l - 2k)."""
    norm = sqrt((2 - (m == 0)) * (2 * order + 1) / (4 * pi) * factorial(order - m) / factorial(order + m))
    coefficients = [0.0] * (order - m + 1)
    for k in range((order - m) // 2 + 1):
        power = order - 2 * k
        coefficients[power - m] = norm * (-1) ** (m + k) * comb(order, k) * comb(order + power, order) / 2**order * perm(power, m)
    return coefficients


def polynomial(coefficients, z):
    """The polynomial at z, by Horner's rule."""
    value = torch.full_like(z, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * z + coefficient
    return value
