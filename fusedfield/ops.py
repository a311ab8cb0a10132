"""The operators of the fused fields, their automatic differentiation and their documentation; arguments are checked where they are compiled.

Notation: M samples, of which the first `count` are in use. Matrices are those of torch.nn.Linear without biases, [outputs, inputs] float32 and
contiguous; ReLU stands between them. The kernels compute with half inputs and float sums, and round to half between layers, as PyTorch
does under autocast. Rows that are not in use give zeros and have no gradient. NaN and infinity spread as in PyTorch.

The Instant-NGP networks (Mueller et al. 2022, section 4): geometry [64, 32], [64, 64], [16, 64], whose first output is the log density, and colour
[32, 31], [32, 32], [3, 32], whose inputs are the other 15 outputs and the 16 spherical harmonics of the direction up to degree 4. The proposal network
(Barron et al. 2022, section 3): [16, K], [1, 16]. MeRF (Reiser et al. 2023): [64, 32], [8, 64], its inputs the sum of four encodings, those of a
three-dimensional grid and of the planes xy, yz and xz; an output x becomes limit tanh(x / limit), with one limit for the first, the log density, and one for
the others.
"""

from pathlib import Path

import torch
from torch.autograd.function import once_differentiable

from kernel_build import load_kernels
from raymarching.checks import check_march, check_threshold
from shencoder import sh_encode_backward

from . import reference

kernels = load_kernels(__package__, Path(__file__).parent) or reference
MERF_RAW = 8
LEAST_CAPABILITY = (8, 0)  # mma.sync of half with float sums, 16 x 8 x 16


def available(device):
    """Whether the kernels run on a torch.device: CUDA of compute capability 8.0 or later, and compiled."""
    device = torch.device(device)
    return device.type == "cuda" and kernels is not reference and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def ngp(encoding, directions, weights, count=None, start=0.0):
    """The Instant-NGP networks. Differentiable with respect to encoding, directions and weights, once; the backward pass runs the networks anew.

    Args:
        encoding: [M, 32] float16 (the twin on a CPU: any float type), grid features.
        directions: [M, 3] float32, unit length.
        weights: six matrices.
        count: [1] int32, or None: all.
        start: added to the log density.
    Returns:
        raw [M, 4], like encoding: log density and three colour logits.
    Raises:
        ValueError, TypeError: an argument of wrong shape, device or dtype, by name.
    """
    return NGP.apply(encoding, directions, count, start, *weights)


def ngp_at(positions, directions, table, offsets, resolutions, bound, weights, count=None, start=0.0):
    """Grid and networks at once. Not differentiable.

    Args:
        positions: [M, 3] float32 in [-bound, bound]^3; outside, or NaN: zero features.
        directions: [M, 3] float32, unit length.
        table: [E, 2] float16 or float32; offsets [L + 1], resolutions [L] int32: a hash grid as in `gridencoder.grid_encode`, of 16 levels.
        bound: half side of the cube.
        weights, count, start: as in `ngp`.
    Returns, Raises: as `ngp`; float16.
    """
    return _form(positions).ngp_at(positions, directions, table, offsets, resolutions, bound, weights, count, start)


def ngp_density_at(positions, table, offsets, resolutions, bound, weights, count=None, start=0.0):
    """The log density [M] float16 alone; arguments and errors as of `ngp_at`, all six matrices included. Not differentiable."""
    return _form(positions).ngp_density_at(positions, table, offsets, resolutions, bound, weights, count, start)


def ngp_render(origins, directions, near, far, bitfield, table, offsets, resolutions, bound, weights, march, T_thresh, start=0.0):
    """Whole rays in one launch: the samples of `raymarching.march_rays`, composited as by `raymarching.composite_rays`. Not differentiable.

    Args:
        origins, directions: [N, 3] float32, unit directions; near, far: [N] float32, from `raymarching.near_far_from_aabb`.
        bitfield: [cascades grid_size^3 / 8] uint8, the occupied cells.
        table, offsets, resolutions, bound, weights, start: as in `ngp_at`.
        march: the settings bound, cascades, grid_size, contract, dt_gamma, max_steps of `raymarching.march_rays_train`, as a dictionary.
        T_thresh: a ray stops where its transmittance falls below this, in [0, 1].
    Returns:
        features [N, 3], opacity [N], depth [N] (not divided by opacity), float32; zeros for a ray without samples.
    Raises: as `ngp`.
    """
    check_march(bitfield, **march)
    check_threshold(T_thresh)
    return _form(origins).ngp_render(
        origins, directions, near, far, bitfield, table, offsets, resolutions, bound, weights, start, march["bound"], march["cascades"],
        march["grid_size"], march["contract"], march["dt_gamma"], march["max_steps"], T_thresh,
    )  # fmt: skip


def ngp_backward(encoding, directions, weights, count, gradient, scale=None, view=False):
    """The raw backward operator of `ngp`, which needs nothing of the forward pass but its inputs.

    Args:
        gradient: [M, 4] float32, the loss's gradient at raw; scale: [] float32 on the device that multiplies it, or None.
        view: whether the gradient at the spherical harmonics is wanted.
        The others: as in `ngp`.
    Returns:
        of_encoding: [M, 32] like encoding; of_weights: [9280] float32, the six matrices' one after the other; of_view: [M, 16] like
        encoding, or [0, 16].
    Raises: as `ngp`.
    """
    return _form(encoding).ngp_backward(encoding, directions, weights, count, gradient, scale, view)


def merf(encodings, weights, limits, count=None):
    """MeRF's network. Differentiable with respect to encodings and weights, once; the backward pass runs the network anew.

    Args:
        encodings: four [M, 32] float16 (the twin on a CPU: any float type).
        weights: two matrices; limits: (that of the density, that of the others).
        count: as in `ngp`.
    Returns:
        raw [M, 8], like encodings: log density and seven logits.
    Raises: as `ngp`.
    """
    return MeRF.apply(limits, count, len(encodings), *encodings, *weights)


def merf_at(positions, tables, offsets, resolutions, bound, weights, limits, count=None):
    """Grid, planes and network at once -> raw [M, 8] float16. Not differentiable.

    Args:
        positions, bound: as in `ngp_at`.
        tables, offsets, resolutions: four each, as in `ngp_at`, but of four features an entry and eight levels at most; of two dimensions the last three.
        weights, limits, count: as in `merf`.
    Raises: as `ngp`.
    """
    return _form(positions).merf_at(positions, tables, offsets, resolutions, bound, weights, *limits, count)


def merf_density_at(positions, tables, offsets, resolutions, bound, weights, limits, count=None):
    """The log density [M] float16 alone; arguments and errors as of `merf_at`. Not differentiable."""
    return _form(positions).merf_density_at(positions, tables, offsets, resolutions, bound, weights, *limits, count)


def merf_backward(encodings, weights, limits, count, gradient, scale=None):
    """The raw backward operator of `merf`: gradient [M, 8] float32 -> of_encoding [M, 32], that of each of the four, and of_weights [2560] float32."""
    return _form(encodings[0]).merf_backward(encodings, weights, *limits, count, gradient, scale)


def proposal(encoding, weights, count=None):
    """The proposal network: [M, K] float16 and two matrices -> log density [M]. K even and at most 16. Differentiable as `ngp`; errors likewise."""
    return Proposal.apply(encoding, count, *weights)


def proposal_at(positions, table, offsets, resolutions, bound, weights, count=None):
    """Grid, of K / 2 levels, and proposal network at once -> log density [M] float16; the rest as in `ngp_at`. Not differentiable."""
    return _form(positions).proposal_at(positions, table, offsets, resolutions, bound, weights, count)


def proposal_backward(encoding, weights, count, gradient, scale=None):
    """The raw backward operator of `proposal`: gradient [M] float32 -> of_encoding [M, K], of_weights [16 K + 16] float32."""
    return _form(encoding).proposal_backward(encoding, weights, count, gradient, scale)


class NGP(torch.autograd.Function):
    """Ties the networks to their gradients."""

    @staticmethod
    def forward(ctx, encoding, directions, count, start, *weights):
        ctx.save_for_backward(encoding, directions, count, *weights)
        return _form(encoding).ngp(encoding, directions, weights, count, start)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        encoding, directions, count, *weights = ctx.saved_tensors
        turned = ctx.needs_input_grad[1]
        of_encoding, of_weights, of_view = ngp_backward(encoding, directions, weights, count, grad.float(), view=turned)
        of_directions = sh_encode_backward(of_view, directions, 4) if turned else None
        return of_encoding, of_directions, None, None, *split_like(of_weights, weights)


class MeRF(torch.autograd.Function):
    """Ties MeRF's network to its gradients."""

    @staticmethod
    def forward(ctx, limits, count, grids, *tensors):
        ctx.limits, ctx.grids = limits, grids
        ctx.save_for_backward(count, *tensors)
        return _form(tensors[0]).merf(tensors[:grids], tensors[grids:], *limits, count)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        count, *tensors = ctx.saved_tensors
        encodings, weights = tensors[: ctx.grids], tensors[ctx.grids :]
        of_encoding, of_weights = merf_backward(encodings, weights, ctx.limits, count, grad.float())
        return None, None, None, *[of_encoding] * ctx.grids, *split_like(of_weights, weights)


class Proposal(torch.autograd.Function):
    """Ties the proposal network to its gradients."""

    @staticmethod
    def forward(ctx, encoding, count, *weights):
        ctx.save_for_backward(encoding, count, *weights)
        return _form(encoding).proposal(encoding, weights, count)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        encoding, count, *weights = ctx.saved_tensors
        of_encoding, of_weights = proposal_backward(encoding, weights, count, grad.float())
        return of_encoding, None, *split_like(of_weights, weights)


def split_like(flat, tensors):
    """Views of a flat tensor in the shapes of others, one after the other."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _form(tensor):
    return kernels if tensor.is_cuda and available(tensor.device) else reference


def register_shapes():
    """Tells torch the operators' results without running them, for torch.compile, export and opcheck."""

    def fake(name, shapes):
        torch.library.register_fake(f"fusedfield::{name}", shapes)

    def weights_size(weights):
        return sum(weight.numel() for weight in weights)

    half = {"dtype": torch.float16}
    fake("ngp", lambda encoding, *_: encoding.new_empty(encoding.shape[0], 4))
    fake("ngp_at", lambda positions, *_: positions.new_empty(positions.shape[0], 4, **half))
    fake("ngp_density_at", lambda positions, *_: positions.new_empty(positions.shape[0], **half))
    fake("ngp_render", lambda origins, directions, near, *_: (torch.empty_like(origins), torch.empty_like(near), torch.empty_like(near)))
    fake(
        "ngp_backward",
        lambda encoding, directions, weights, count, gradient, scale, view: (
            torch.empty_like(encoding), gradient.new_empty(weights_size(weights)), encoding.new_empty(encoding.shape[0] if view else 0, 16),
        ),
    )  # fmt: skip
    fake("merf", lambda encodings, *_: encodings[0].new_empty(encodings[0].shape[0], MERF_RAW))
    fake("merf_at", lambda positions, *_: positions.new_empty(positions.shape[0], MERF_RAW, **half))
    fake("merf_density_at", lambda positions, *_: positions.new_empty(positions.shape[0], **half))
    fake(
        "merf_backward",
        lambda encodings, weights, density_limit, feature_limit, count, gradient, scale: (
            torch.empty_like(encodings[0]), gradient.new_empty(weights_size(weights)),
        ),
    )  # fmt: skip
    fake("proposal", lambda encoding, weights, count: encoding.new_empty(encoding.shape[0]))
    fake("proposal_at", lambda positions, *_: positions.new_empty(positions.shape[0], **half))
    fake(
        "proposal_backward",
        lambda encoding, weights, count, gradient, scale: (torch.empty_like(encoding), gradient.new_empty(weights_size(weights))),
    )


if kernels is not reference:
    register_shapes()
