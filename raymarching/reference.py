"""The operators in plain PyTorch: the definition that the kernels are tested against, and the fallback where nothing can be compiled.

Same names, arguments and results as the raw operators (see ops.py). Where the kernels round once (fmaf), so does this, to the bit but for
a one-in-a-billion double rounding. The march goes in lockstep over all rays, one step an iteration: exact but slow.
"""

from dataclasses import dataclass

import torch

from .reference_lens import generate_rays

__all__ = [
    "composite_rays", "composite_rays_train_backward", "composite_rays_train_forward", "contract", "generate_rays", "march_rays",
    "march_rays_train", "morton3D", "morton3D_invert", "near_far_from_aabb", "packbits",
]  # fmt: skip

FLOAT_MAX = torch.finfo(torch.float32).max
SQRT3 = 3**0.5


def near_far_from_aabb(origins, directions, aabb, min_near):
    low, high = (aabb[:3] - origins) / directions, (aabb[3:] - origins) / directions
    parallel, inside = directions == 0, (origins >= aabb[:3]) & (origins <= aabb[3:])
    near = torch.where(parallel, -FLOAT_MAX, torch.fmin(low, high)).amax(1).clamp(min=min_near)
    far = torch.where(parallel, FLOAT_MAX, torch.fmax(low, high)).amin(1).clamp(max=FLOAT_MAX)
    hit = torch.where(parallel, inside, ~(low.isnan() | high.isnan())).all(1) & (near < far) & (far < FLOAT_MAX)
    miss = torch.full_like(near, FLOAT_MAX)
    return torch.where(hit, near, miss), torch.where(hit, far, miss)


def morton3D(coords):
    code = torch.zeros_like(coords[:, 0])
    for bit in range(10):
        for axis in range(3):
            code |= ((coords[:, axis] >> bit) & 1) << (3 * bit + axis)
    return code


def morton3D_invert(indices):
    coords = indices.new_zeros(indices.shape[0], 3)
    for bit in range(10):
        for axis in range(3):
            coords[:, axis] |= ((indices >> (3 * bit + axis)) & 1) << bit
    return coords


def packbits(density, threshold):
    bits = (density > threshold).view(-1, 8).to(torch.uint8)
    return (bits << torch.arange(8, device=density.device, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def contract(positions):
    norm = positions.abs().amax(1, keepdim=True)
    dominant = torch.zeros_like(positions, dtype=torch.bool).scatter(1, positions.abs().argmax(1, keepdim=True), True)
    bent = torch.where(dominant, torch.copysign(2 - 1 / norm, positions), positions / norm)
    return torch.where(norm > 1, bent, positions)


@dataclass
class _March:
    """What is the same for every ray of a march, rounded to float32 as the kernels round it; as 0-d tensors."""

    bound: float
    cascades: int
    grid_size: int
    contract: bool
    dt_gamma: float
    max_steps: int

    def __post_init__(self):
        diagonal = 2 * torch.tensor(SQRT3)
        self.bound, self.dt_gamma = torch.tensor(float(self.bound)), torch.tensor(float(self.dt_gamma))
        self.dt_max = diagonal * self.bound / self.grid_size
        self.dt_min = torch.minimum(diagonal / self.max_steps, self.dt_max)

    def step_size(self, t):
        return (t * self.dt_gamma.item()).clamp(self.dt_min.item(), self.dt_max.item())

    def next_step(self, t):
        following = t + self.step_size(t)
        return torch.where(following > t, following, FLOAT_MAX)

    def cell(self, position, dt):
        """Cascade [N], cell coordinates [N, 3] and half side of the cascade's cube [N] around each position."""
        by_position = torch.frexp(position.abs().amax(1)).exponent
        by_step = torch.frexp(0.5 * dt * self.grid_size).exponent
        cascade = torch.maximum(by_position, by_step).clamp(0, self.cascades - 1)
        half_side = torch.ldexp(torch.ones_like(dt), cascade).clamp(max=self.bound.item())
        half_grid = 0.5 * self.grid_size
        at = _fma(position, (half_grid / half_side)[:, None], half_grid)
        return cascade, at.nan_to_num(0.0).clamp(0, self.grid_size - 1).int(), half_side

    def occupied(self, cascade, cell, bitfield):
        bit = cascade.long() * self.grid_size**3 + morton3D(cell)
        return (bitfield[bit >> 3] >> (bit & 7).to(torch.uint8)) & 1 == 1

    def exit(self, cell, half_side, position, directions, t):
        side = 2 * half_side / self.grid_size
        face = _fma((cell + (directions > 0)).float(), side[:, None], -half_side[:, None])
        ahead = torch.where(directions == 0, FLOAT_MAX, (face - position) / directions)
        return t + ahead.amin(1).clamp(0, FLOAT_MAX)

    def walk(self, origins, directions, bitfield, t, far, limit):
        """All steps of all rays: found [N, S], position [N, S, 3], middle [N, S], dt [N, S] and the t of the step after the last."""
        found_before, skip_to, steps = torch.zeros_like(t, dtype=torch.int64), torch.full_like(t, -FLOAT_MAX), []
        active = (t < far) & (found_before < limit)
        while active.any():
            dt = self.step_size(t)
            middle = _fma(dt, 0.5, t)
            position = _fma(middle[:, None], directions, origins)
            bent = (position.abs().amax(1) > 1) & self.contract
            position = contract(position) if self.contract else position
            cascade, cell, half_side = self.cell(position, dt)
            looked = active & ~(middle < skip_to)
            found = looked & self.occupied(cascade, cell, bitfield)
            leave = torch.where(bent, middle, self.exit(cell, half_side, position, directions, middle))
            skip_to = torch.where(looked & ~found, leave, skip_to)
            found_before = found_before + found
            steps.append((found, position, middle, dt))
            t = torch.where(active, self.next_step(t), t)
            active = (t < far) & (found_before < limit)
        if not steps:
            return t.new_zeros(len(t), 0, dtype=torch.bool), t.new_zeros(len(t), 0, 3), t.new_zeros(len(t), 0), t.new_zeros(len(t), 0), t
        return *(torch.stack(column, 1) for column in zip(*steps)), t


def _fma(a, b, c):
    def wide(x):
        return x.double() if isinstance(x, torch.Tensor) else x

    return (wide(a) * wide(b) + wide(c)).float()


def march_rays_train(origins, directions, near, far, noise, num_rays, bitfield, *, capacity, **settings):
    march = _March(**settings)
    start = _fma(noise, march.step_size(near), near)
    ray = torch.arange(len(origins), device=origins.device)
    asked = ray < num_rays
    found, position, middle, dt, _ = march.walk(origins, directions, bitfield, start, torch.where(asked, far, near), march.max_steps)
    ends = found.sum(1).cumsum(0)
    kept = asked & (ends <= capacity)
    count = torch.where(kept, found.sum(1), 0)
    rays = torch.stack([torch.where(kept, ends - count, 0), count], 1).int()
    chosen = found & kept[:, None]
    written = int(count.sum())

    def packed(values, filler):
        rows = torch.full((capacity, *values.shape[2:]), filler, dtype=values.dtype, device=values.device)
        rows[:written] = values[chosen]
        return rows

    wide = found.shape[1]
    counts = torch.stack([count.sum(), kept.sum(), found.sum().clamp(max=2**31 - 1)]).int()
    return (packed(position, 0), packed(directions[:, None].expand(-1, wide, -1), 0), packed(middle, 0), packed(dt, 0),
            packed(ray[:, None].expand(-1, wide).int(), -1), rays, counts)  # fmt: skip


def march_rays(alive, t_now, origins, directions, far, bitfield, *, steps, **settings):
    march = _March(**settings)
    valid = (alive >= 0) & (alive < len(origins))
    ray = torch.where(valid, alive, 0).long()
    if len(origins) == 0:
        origins, directions, far, t_now = (x.new_zeros(1, *x.shape[1:]) for x in (origins, directions, far, t_now))
    start = t_now[ray]
    end = torch.where(valid, far[ray], start)
    found, position, middle, dt, t_next = march.walk(origins[ray], directions[ray], bitfield, start, end, steps)
    slot = (torch.arange(len(alive), device=alive.device)[:, None] * steps + found.cumsum(1) - 1)[found]

    def padded(values):
        rows = values.new_zeros(len(alive) * steps, *values.shape[2:])
        rows[slot] = values[found]
        return rows

    wide = directions[ray][:, None].expand(-1, found.shape[1], -1)
    return padded(position), padded(wide), padded(middle), padded(dt), torch.where(valid, t_next, 0)


def composite_rays_train_forward(density, features, t, dt, rays, T_thresh):
    """Differentiable by autograd, unlike the kernel."""
    first, count = rays.long().unbind(1)
    sound = (first >= 0) & (count > 0) & (first + count <= len(density))
    first, count = torch.where(sound, first, 0), torch.where(sound, count, 0)
    along = torch.arange(int(count.max()) if len(count) else 0, device=rays.device)
    inside = along < count[:, None]
    row = torch.where(inside, first[:, None] + along, 0)
    length = torch.where(inside, dt[row].clamp(min=0), 0)
    tau = torch.where(length > 0, density[row] * length, 0)
    behind = torch.exp(-tau.cumsum(1))
    before = torch.cat([torch.ones_like(behind[:, :1]), behind[:, :-1]], 1)
    stopped = (behind < T_thresh).cumsum(1) - (behind < T_thresh).long() > 0
    weight = torch.where(inside & ~stopped, before * -torch.expm1(-tau), 0)
    composited = (weight[..., None] * features[row]).sum(1)
    weights = torch.zeros_like(density).index_put((row[inside],), weight[inside])
    return composited, weight.sum(1), (weight * t[row]).sum(1), weights


def composite_rays_train_backward(
    grad_composited, grad_opacity, grad_depth, grad_weights, density, features, t, dt, rays, T_thresh
):  # fmt: skip
    with torch.enable_grad():
        leaves = density.detach().requires_grad_(), features.detach().requires_grad_()
        outputs = composite_rays_train_forward(*leaves, t, dt, rays, T_thresh)
    pairs = [(o, g) for o, g in zip(outputs, (grad_composited, grad_opacity, grad_depth, grad_weights)) if g is not None]
    if not pairs:
        return torch.zeros_like(density), torch.zeros_like(features)
    outputs, cotangents = zip(*pairs)
    gradients = torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True)
    return tuple(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients))


def composite_rays(alive, t_now, t_next, density, features, t, dt, composited, opacity, depth, T_thresh):
    if len(alive) == 0:
        return
    valid = (alive >= 0) & (alive < len(t_now))
    ray, place = alive[valid].long(), valid.nonzero()[:, 0]
    density, features, t, dt = (x.view(len(alive), -1, *x.shape[1:])[place] for x in (density, features, t, dt))
    T = 1 - opacity[ray]
    finished = torch.zeros_like(ray, dtype=torch.bool)
    for k in range(density.shape[1]):
        length = dt[:, k].clamp(min=0)
        tau = torch.where(length > 0, density[:, k] * length, 0)
        weight = torch.where(finished, 0, T * -torch.expm1(-tau))
        composited.index_add_(0, ray, weight[:, None] * features[:, k])
        opacity.index_add_(0, ray, weight)
        depth.index_add_(0, ray, weight * t[:, k])
        T = T * torch.exp(-tau)
        finished = finished | (T < T_thresh) | ~(dt[:, k] > 0)
    t_now[ray] = t_next[place]
    alive[place[finished]] = -1
