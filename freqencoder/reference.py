"""The raw operators in plain PyTorch, which the compiled ones are tested against.

Same names, arguments and results as in `ops`; serves where nothing can be compiled.
"""

import torch


def freq_encode_forward(positions, degree, include_input, dtype):
    """[M, D] -> [M, D (2 degree + j)] of `dtype`; differentiable by autograd."""
    scales = torch.tensor([2.0**octave for octave in range(degree)], dtype=positions.dtype, device=positions.device)
    angles = positions[:, None, :] * scales[:, None]  # [M, degree, D]
    waves = torch.stack([angles.sin(), angles.cos()], 2).flatten(1)
    return (torch.cat([positions, waves], 1) if include_input else waves).to(dtype)


def freq_encode_backward(grad, positions, degree, include_input):
    """[M, D (2 degree + j)] -> [M, D]: autograd through `freq_encode_forward`."""
    with torch.enable_grad():
        variable = positions.detach().requires_grad_()
        output = freq_encode_forward(variable, degree, include_input, positions.dtype)
        return torch.autograd.grad(output, variable, grad.to(positions.dtype))[0]
