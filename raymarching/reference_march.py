"""The marches in plain PyTorch, and what they stand on: Morton codes and contraction. All rays go in lockstep, 32 steps an iteration."""

from dataclasses import dataclass

import torch

FLOAT_MAX = torch.finfo(torch.float32).max
SQRT3 = 3**0.5
GROUP = 32  # steps that are laid out at once; see march_math.h


def morton3D(coords):
    code = torch.zeros_like(coords[:, 0])
    for bit in range(10):
        for axis in range(3):
            code |= ((coords[:, axis] >> bit) & 1) << (3 * bit + axis)
    return code


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
        self.growth_from, self.growth_until = (dt / self.dt_gamma for dt in (self.dt_min, self.dt_max))  # infinite for dt_gamma = 0
        powers = [1.0]
        for _ in range(GROUP):
            powers.append(powers[-1] * (1 + self.dt_gamma.item()))
        self.growth = torch.tensor(powers)

    def step_size(self, t):
        return (t * self.dt_gamma.item()).clamp(self.dt_min.item(), self.dt_max.item())

    def group(self, t):
        """t of the 32 steps of the group that starts at t [N] and of the first step behind it: [N, 33]."""
        t = torch.where(t + self.step_size(t) > t, t, FLOAT_MAX)[:, None]
        large, growth = t >= self.growth_until, self.growth.to(t.device)
        small = ~large & (_fma(self.dt_min, GROUP, t) <= self.growth_from)
        growing = ~large & ~small & (t >= self.growth_from) & (t * growth[-1] <= self.growth_until)
        one_by_one = [t]
        for _ in range(GROUP):
            one_by_one.append(one_by_one[-1] + self.step_size(one_by_one[-1]))
        steps = torch.where(growing, t * growth, torch.cat(one_by_one, 1))
        even = _fma(torch.where(large, self.dt_max.item(), self.dt_min.item()), torch.arange(GROUP + 1, device=t.device), t)
        return torch.where(large | small, even, steps)

    def occupied(self, position, dt, bitfield):
        """Whether the cell around each position [..., 3] is occupied; the cascade is the smallest that fits the position and the step."""
        by_position = torch.frexp(position.abs().amax(-1)).exponent
        by_step = torch.frexp(0.5 * dt * self.grid_size).exponent
        cascade = torch.maximum(by_position, by_step).clamp(0, self.cascades - 1)
        half_side = torch.ldexp(torch.ones_like(dt), cascade).clamp(max=self.bound.item())
        half_grid = 0.5 * self.grid_size
        at = _fma(position, (half_grid / half_side)[..., None], half_grid)
        cell = at.nan_to_num(0.0).clamp(0, self.grid_size - 1).int()
        bit = cascade.long() * self.grid_size**3 + morton3D(cell.view(-1, 3)).view(dt.shape)
        return (bitfield[bit >> 3] >> (bit & 7).to(torch.uint8)) & 1 == 1

    def walk(self, origins, directions, bitfield, t, far, limit):
        """All steps of all rays: found [N, S], position [N, S, 3], middle [N, S], dt [N, S] and the t of the step after the last."""
        finite = (origins.isfinite() & directions.isfinite()).all(1)
        far = torch.where(finite, far.clamp(max=FLOAT_MAX), t)
        start, columns, number = t, [], torch.zeros_like(t, dtype=torch.int64)
        begin, active = t, (t < far) & (number < limit)
        while active.any():
            t = self.group(begin)
            t, begin = t[:, :-1], t[:, -1]
            dt = self.step_size(t)
            middle = _fma(dt, 0.5, t)
            position = _fma(middle[..., None], directions[:, None], origins[:, None])
            position = contract(position.view(-1, 3)).view_as(position) if self.contract else position
            looked = active[:, None] & (t < far[:, None])
            found = looked & self.occupied(position, dt, bitfield)
            before = number[:, None] + found.cumsum(1) - found.long()
            looked, found = looked & (before < limit), found & (before < limit)
            number = number + found.sum(1)
            columns.append((looked, found, position, middle, dt, t))
            active = (begin < far) & (number < limit)
        if not columns:
            return t.new_zeros(len(t), 0, dtype=torch.bool), t.new_zeros(len(t), 0, 3), t.new_zeros(len(t), 0), t.new_zeros(len(t), 0), t
        looked, found, position, middle, dt, t = (torch.cat(column, 1) for column in zip(*columns))
        t_next = torch.cat([t, begin[:, None]], 1).gather(1, looked.sum(1, keepdim=True))[:, 0]
        return found, position, middle, dt, torch.where(start < far, t_next, start)


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
