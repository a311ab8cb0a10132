"""The operators of sampling by proposals and their documentation; their arguments are checked where they are compiled."""

from pathlib import Path

import torch

from kernel_build import load_kernels

from . import reference

kernels = load_kernels(__package__, Path(__file__).parent) or reference


@torch.no_grad()
def place_samples(edges, origins, directions, near, far, count, *, contract, last_open):
    """The samples of intervals along rays: the middle of each interval, in world units.

    The edges u are in normalised spacing: t(u) = g^-1((1 - u) g(near) + u g(far)) with g(t) = t / 2 for t < 1, else 1 - 1 / (2 t), which is
    linear in distance near the camera and in disparity far from it (Nerfacto's spacing; compare Barron et al. 2022, mip-NeRF 360,
    section 3). Float32 keeps t to a few units in its last place however far it is.

    A ray has no samples if it is not one of the first `count`, or where near >= far, or where near or far is not finite: all its rows are
    padding.

    Args:
        edges: [N, S + 1] float32 in [0, 1], ascending along each ray, S from 1 to 1024; an interval whose edges do not ascend has dt = 0.
        origins, directions: [N, 3], like edges; unit directions. NaN or infinity stays in positions of the same ray.
        near, far: [N], like edges, in world units.
        count: [1] int32: the rays in use, held to [0, N].
        contract: whether positions are contracted to max-norm below 2, as `raymarching.contract` does (Reiser et al. 2023, MeRF,
            equation 2).
        last_open: whether the last interval of each ray gets dt = 1e10: it is opaque wherever there is any density, so that the
            background is learned as the last sample.
    Returns:
        positions [N S, 3], sample_directions [N S, 3], t [N S], dt [N S], all like edges, and ray_index [N S] int32. In a row of padding
        ray_index is -1 and all else is 0. On the CPU all of it may be float64. Not differentiable.
    Raises:
        ValueError, TypeError: an argument of wrong shape, device or dtype, by name.
    """
    return kernels.place_samples(edges, origins, directions, near, far, count, contract, last_open)


@torch.no_grad()
def resample(edges, logit, near, far, count, noise, intervals, *, padding=0.01, anneal=None):
    """New intervals where a proposal's weights are, and these weights.

    With sigma = exp(logit) and the lengths dt that `place_samples` gives, w_k = exp(-sum over i < k of sigma_i dt_i) (1 - exp(-sigma_k
    dt_k)). Interval k gets the share of the new edges that is proportional to w_k^anneal + padding, spread evenly between its edges. The
    new edge j = 0 ... S2 lies where the cumulative share reaches (j + noise) / (S2 + 1): stratified positions, and the middle of each
    stratum for noise 0.5 (Barron et al. 2022, mip-NeRF 360, section 3.1, without its blurring; padding and annealing are theirs, too).

    Where all weights of a ray are 0, as they are on a ray without samples (see `place_samples`), or where their sum is not finite, the new
    edges are evenly spaced between the first and the last edge. They ascend in any case, from the first edge to the last, and with the
    same noise in all strata strictly so but where float32 cannot tell neighbours apart.

    Args:
        edges: [N, S + 1] float32, as in `place_samples`.
        logit: N S values in the order of the intervals, such as [N, S] or [N S], of the dtype of edges or float16: the logarithm of density
            (1 / world unit). NaN makes the weights from there on NaN, on that ray alone.
        near, far: [N], like edges; count: [1] int32, as in `place_samples`.
        noise: [N], one number for all strata of a ray, or [N, S2 + 1], one each; like edges, in [0, 1) and held to [0, 1]; NaN counts
            as 0.5.
        intervals: S2, from 1 to 1024.
        padding: at least 0.
        anneal: [1] like edges, in device memory so that a captured step can change it, held to [0, 1]; None and NaN count as 1.
    Returns:
        new_edges [N, S2 + 1] and weights [N, S], like edges. On the CPU all of it may be float64. Not differentiable.
    Raises:
        ValueError, TypeError: an argument of wrong shape, device, dtype or value, by name.
    """
    return kernels.resample(edges, logit, near, far, count, noise, intervals, padding, anneal)


@torch.no_grad()
def interlevel_loss(edges_ref, weights_ref, edges, logit, near, far, count):
    """The loss that teaches a proposal to cover the weights of a finer level, and its gradient at the proposal's raw output.

    Barron et al. 2022, mip-NeRF 360, equation 13: with bound_i the sum of the proposal's weights (as in `resample`) over its intervals that
    have an inner point in common with the reference interval i, the loss is the mean over the rays in use of
    sum_i max(0, w_i - bound_i)^2 / (w_i + 1e-7). The reference is held constant. The derivative of exp is taken at logits held to
    [-15, 15], where float32 cannot overflow (Mueller et al. 2022 do the same). A ray without samples (see `place_samples`) adds 0.

    Args:
        edges_ref: [N, S + 1]; weights_ref: [N, S], like edges: the finer level.
        edges: [N, Sp + 1] float32, as in `place_samples`: the proposal's.
        logit: N Sp values in the order of the intervals, of any shape, of the dtype of edges or float16: the proposal's logarithm of
            density.
        near, far: [N], like edges; count: [1] int32, as in `place_samples`.
    Returns:
        gradient of the dtype of edges and the shape of logit; 0 on rays without samples. A ray with a NaN spoils its own rows alone.
        loss [1] of the same dtype; 0 where no ray is in use, NaN where a ray in use has a NaN. On a GPU its last digits depend on the order
        in which rays are added up; the gradient repeats to the bit. On the CPU all of it may be float64.
    Raises:
        ValueError, TypeError: an argument of wrong shape, device or dtype, by name.
    """
    return kernels.interlevel_loss(edges_ref, weights_ref, edges, logit, near, far, count)


def register_shapes():
    """Tells torch the operators' results without running them, for torch.compile, export and opcheck."""

    @torch.library.register_fake("raysampling::place_samples")
    def _(edges, origins, directions, near, far, count, contract, last_open):
        rows = edges.shape[0] * (edges.shape[1] - 1)
        positions, sample_directions = edges.new_empty(rows, 3), edges.new_empty(rows, 3)
        return positions, sample_directions, edges.new_empty(rows), edges.new_empty(rows), edges.new_empty(rows, dtype=torch.int32)

    @torch.library.register_fake("raysampling::resample")
    def _(edges, logit, near, far, count, noise, intervals, padding, anneal):
        return edges.new_empty(edges.shape[0], intervals + 1), edges.new_empty(edges.shape[0], edges.shape[1] - 1)

    @torch.library.register_fake("raysampling::interlevel_loss")
    def _(edges_ref, weights_ref, edges, logit, near, far, count):
        return edges.new_empty(logit.shape), edges.new_empty(1)


if kernels is not reference:
    register_shapes()
