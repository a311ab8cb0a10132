"""Argument checks of the public operators: kernels read raw memory, so nothing that does not fit may reach them."""

import torch

MAX_CHANNELS = 16
MAX_CASCADES = 64


def check_tensors(**expected):
    """Checks that each named tensor has its dtype and shape and that all are on the device of the first.

    Args:
        expected: name = (tensor, dtype, shape); None in a shape fits any size.
    Raises:
        TypeError: not a tensor, or of another dtype.
        ValueError: of another shape, or on another device.
    """
    home = None
    for name, (tensor, dtype, shape) in expected.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}: convert it first")
        if tensor.dim() != len(shape) or any(want is not None and want != size for want, size in zip(shape, tensor.shape)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{name} must have the shape [{wanted}], got {list(tensor.shape)}")
        if home is None:
            home = name, tensor.device
        elif tensor.device != home[1]:
            raise ValueError(f"{name} is on {tensor.device} but {home[0]} is on {home[1]}: move them to one device")


def check_contiguous(**tensors):
    """Raises ValueError where a tensor that is changed in place is not contiguous."""
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} is changed in place and must be contiguous: call .contiguous() where it is made")


def check_at_least(least, **numbers):
    """Raises ValueError where a number is below `least` (NaN counts as below)."""
    for name, number in numbers.items():
        if not number >= least:
            raise ValueError(f"{name} must be at least {least}, got {number}")


def check_threshold(T_thresh):
    """Checks the transmittance at which a ray stops: forward and backward only agree on where that is for one in [0, 1]."""
    if not 0 <= T_thresh <= 1:
        raise ValueError(f"T_thresh must be from 0 to 1, got {T_thresh}")


def check_march(bitfield, bound, cascades, grid_size, contract, dt_gamma, max_steps):
    """Checks the settings that every march takes; see `march_rays_train` for what they mean."""
    check_at_least(0, dt_gamma=dt_gamma)
    check_at_least(1, cascades=cascades, max_steps=max_steps)
    if cascades > MAX_CASCADES:
        raise ValueError(f"cascades must be at most {MAX_CASCADES}, got {cascades}")
    if not 0 < bound < float("inf"):
        raise ValueError(f"bound must be positive and finite, got {bound}")
    if contract and bound != 2:
        raise ValueError(f"bound must be 2 with contract, the half side of contracted space, got {bound}")
    if grid_size not in (4, 8, 16, 32, 64, 128, 256, 512, 1024):
        raise ValueError(f"grid_size must be a power of two from 4 to 1024 (the order of the cells is Morton's), got {grid_size}")
    check_tensors(bitfield=(bitfield, torch.uint8, (cascades * grid_size**3 // 8,)))
