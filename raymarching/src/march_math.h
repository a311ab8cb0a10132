// The mathematics of marching, one copy for the CPU loops and the CUDA kernels.
//
// A ray's steps are t_{k+1} = t_k + dt_k with dt_k = clamp(t_k dt_gamma, dt_min, dt_max), whatever is empty: a step is a sample where the
// cell around its middle is occupied, and passing over empty cells only saves time. So any number of lanes can look at steps at once.
// For that, steps are laid out in groups of 32: within a group that is all at dt_min or at dt_max, t = start + j dt; within one that
// grows all along, t = start (1 + dt_gamma)^j; only in the one or two groups of a ray where growth sets in or ends, step by step. This is
// the same recurrence with less rounding, and the same to the bit in every form.
#pragma once

#include <algorithm>

#include "raymarching_math.h"

namespace raymarching {

constexpr int GROUP = 32;
constexpr int MAX_CASCADES = 64;

// What is the same for every ray of a march.
struct March {
  float bound, dt_gamma, dt_min, dt_max;
  float growth_from, growth_until;  // the t between which steps grow with t
  float growth[GROUP + 1];          // (1 + dt_gamma)^j
  float scale;                      // cells per world unit in a cascade that the bound cuts
  int cascades, grid_size;
  bool contracted;
};

inline March make_march(double bound, int64_t cascades, int64_t grid_size, bool contracted, double dt_gamma, int64_t max_steps) {
  March m;
  m.bound = static_cast<float>(bound);
  m.dt_gamma = static_cast<float>(dt_gamma);
  m.dt_max = 2 * SQRT3 * m.bound / static_cast<float>(grid_size);
  m.dt_min = fminf(2 * SQRT3 / static_cast<float>(max_steps), m.dt_max);
  m.growth_from = m.dt_gamma > 0 ? m.dt_min / m.dt_gamma : INFINITY;
  m.growth_until = m.dt_gamma > 0 ? m.dt_max / m.dt_gamma : INFINITY;
  double power = 1;
  for (int j = 0; j <= GROUP; ++j, power *= 1 + static_cast<double>(m.dt_gamma)) m.growth[j] = static_cast<float>(power);
  m.scale = 0.5f * static_cast<float>(grid_size) / m.bound;
  m.cascades = static_cast<int>(cascades);
  m.grid_size = static_cast<int>(grid_size);
  m.contracted = contracted;
  return m;
}

// ------------------------------------------------------------------------------------------------------------------- steps

HOST_DEVICE float step_size(const March& m, float t) { return least(greatest(t * m.dt_gamma, m.dt_min), m.dt_max); }

HOST_DEVICE float march_start(const March& m, float near, float noise) { return fmaf(noise, step_size(m, near), near); }

// A ray with a NaN or infinite origin or direction has no samples.
HOST_DEVICE bool finite_ray(const float* origin, const float* direction) {
  bool finite = true;
  for (int i = 0; i < 3; ++i) finite = finite && fabsf(origin[i]) <= FLT_MAX && fabsf(direction[i]) <= FLT_MAX;
  return finite;
}

// 32 steps from `start` on. `step`: their length where it is constant, 0 where it grows all along, negative where it changes its rule.
struct Group {
  float start, step;
};

// Far from the origin a step can be lost to rounding: the march ends there.
HOST_DEVICE Group group_at(const March& m, float t) {
  if (!(t + step_size(m, t) > t)) t = FLT_MAX;
  if (t >= m.growth_until) return {t, m.dt_max};
  if (fmaf(GROUP, m.dt_min, t) <= m.growth_from) return {t, m.dt_min};
  return {t, t >= m.growth_from && t * m.growth[GROUP] <= m.growth_until ? 0.f : -1.f};
}

// t of step j, from 0 to GROUP, of a group that keeps its rule; growth = m.growth[j].
HOST_DEVICE float step_of(const Group& group, int j, float growth) {
  return group.step > 0 ? fmaf(static_cast<float>(j), group.step, group.start) : group.start * growth;
}

// A place on a ray's steps, for those who take them one by one: the step covers [t, t + dt].
struct Step {
  Group group;
  float t, dt;
  int j;

  HOST_DEVICE Step(const March& m, float start) { begin(m, start); }

  HOST_DEVICE void begin(const March& m, float start) { group = group_at(m, start), t = group.start, dt = step_size(m, t), j = 0; }

  HOST_DEVICE float middle() const { return fmaf(0.5f, dt, t); }

  HOST_DEVICE void advance(const March& m) {
    ++j;
    t = group.step < 0 ? t + dt : step_of(group, j, m.growth[j]);
    if (j == GROUP)
      begin(m, t);
    else
      dt = step_size(m, t);
  }
};

// ------------------------------------------------------------------------------------------------------------------- cells

// The e of x = f 2^e with f in [0.5, 1), x not negative; from the bits, since this runs for every step (frexp is a call). Least -126.
HOST_DEVICE int exponent_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return static_cast<int>(bits >> 23) - 126;
}

HOST_DEVICE float power_of_two(int exponent) {
  const uint32_t bits = static_cast<uint32_t>(exponent + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return power;
}

// The smallest cascade whose cube (half side 2^c) holds the point and whose cells are no smaller than the step.
HOST_DEVICE int cascade_of(const March& m, const float* position, float dt) {
  const int by_position = exponent_of(max_norm(position)), by_step = exponent_of(0.5f * dt * static_cast<float>(m.grid_size));
  const int cascade = by_position > by_step ? by_position : by_step;
  return cascade < 0 ? 0 : cascade < m.cascades ? cascade : m.cascades - 1;
}

// The occupancy cell around a point.
struct Cell {
  int cascade, index[3];
};

HOST_DEVICE Cell cell_of(const March& m, const float* position, float dt) {
  Cell cell;
  cell.cascade = cascade_of(m, position, dt);
  const float half_grid = 0.5f * static_cast<float>(m.grid_size), last = static_cast<float>(m.grid_size - 1);
  const float scale = greatest(half_grid * power_of_two(-cell.cascade), m.scale);  // the cube's half side is min(2^c, bound)
  for (int i = 0; i < 3; ++i)
    cell.index[i] = static_cast<int>(least(greatest(0.f, fmaf(position[i], scale, half_grid)), last));
  return cell;
}

HOST_DEVICE bool occupied(const March& m, int cascade, uint32_t code, const uint8_t* bitfield) {
  const int64_t bytes = int64_t(m.grid_size) * m.grid_size * m.grid_size / 8;  // of a cascade
  return bitfield[cascade * bytes + (code >> 3)] >> (code & 7) & 1;
}

// The sample's position at `middle`, contracted if asked for. Returns whether it was bent, that is, moved by that.
HOST_DEVICE bool sample_position(const March& m, const float* origin, const float* direction, float middle, float* position) {
  for (int i = 0; i < 3; ++i) position[i] = fmaf(middle, direction[i], origin[i]);
  const bool bent = m.contracted && max_norm(position) > 1;
  if (bent) contract(position);
  return bent;
}

// Every step after the one with this middle, as long as its own middle is before `middle` here and it is shorter than `dt` here, looks into
// the same cell. Never too far: the slack, a hundredth of a cell or less, exceeds all rounding by far.
struct Reach {
  float middle, dt;
};

HOST_DEVICE Reach reach_of(const March& m, const Cell& cell, const float* position, const float* direction, float middle) {
  const float cube = power_of_two(cell.cascade), half_side = least(cube, m.bound), grid = static_cast<float>(m.grid_size);
  if (cell.cascade > 0 && cube > m.bound) return {middle, 0};  // its cells do not line up with those of the cascade inside
  const float side = 2 * half_side / grid, slack = (half_side + max_norm(position) + fabsf(middle)) * 0x1p-18f;
  float ahead = FLT_MAX;
  for (int i = 0; i < 3; ++i) {
    if (direction[i] == 0) continue;
    const float face = fmaf(static_cast<float>(cell.index[i] + (direction[i] > 0)), side, -half_side);
    const float way = direction[i] > 0 ? face - position[i] : position[i] - face;
    ahead = least(ahead, (way - slack) / fabsf(direction[i]));
  }
  return {middle + greatest(0.f, ahead), cell.cascade + 1 < m.cascades ? 2 * cube / grid : FLT_MAX};
}

// Walks the ray from the step that starts at t (updated) until `far` or until `limit` samples are found; each goes to
// emit(k, position, middle, dt). Returns how many.
template <class Emit>
HOST_DEVICE int march(const March& m, const float* origin, const float* direction, const uint8_t* bitfield, float& t, float far, int limit,
                      Emit&& emit) {
  far = finite_ray(origin, direction) ? least(far, FLT_MAX) : t;
  if (!(t < far)) return 0;
  int count = 0;
  Step step(m, t);
  while (step.t < far && count < limit) {
    const float dt = step.dt, middle = step.middle();
    float position[3];
    const bool bent = sample_position(m, origin, direction, middle, position);
    const Cell cell = cell_of(m, position, dt);
    if (occupied(m, cell.cascade, morton(cell.index[0], cell.index[1], cell.index[2]), bitfield)) {
      emit(count++, position, middle, dt);
      step.advance(m);
      continue;
    }
    // A bent ray has no straight way to the face of its cell.
    const Reach reach = bent ? Reach{middle, 0} : reach_of(m, cell, position, direction, middle);
    do step.advance(m);
    while (step.t < far && step.middle() < reach.middle && step.dt < reach.dt);
  }
  t = step.t;
  return count;
}

// ----------------------------------------------------------------------------------------------------------------- buffers

// The packed sample buffers. Positions and directions are [M, 3]; ray_index may be null.
struct SampleRows {
  float *positions, *directions, *t, *dt;
  int32_t* ray_index;

  HOST_DEVICE void write(int64_t row, const float* position, const float* direction, float middle, float step, int32_t ray) const {
    for (int i = 0; i < 3; ++i) positions[3 * row + i] = position[i], directions[3 * row + i] = direction[i];
    t[row] = middle, dt[row] = step;
    if (ray_index) ray_index[row] = ray;
  }

  HOST_DEVICE void pad(int64_t row) const {
    const float zero[3] = {0, 0, 0};
    write(row, zero, zero, 0, 0, -1);
  }
};

// One round of rendering for the ray `ray` of N: `steps` rows from `first` on, padded where it finds fewer. Returns t of the next round.
// A ray number outside [0, N), such as the -1 of a finished ray, gets padding alone.
HOST_DEVICE float march_alive(const March& m, int64_t ray, int64_t rays, const float* t_now, const float* origins, const float* directions,
                              const float* far, const uint8_t* bitfield, int64_t first, int steps, const SampleRows& samples) {
  int found = 0;
  float t = 0;
  if (ray >= 0 && ray < rays) {
    const float* direction = directions + 3 * ray;
    t = t_now[ray];
    found = march(m, origins + 3 * ray, direction, bitfield, t, far[ray], steps, [&](int k, const float* position, float middle, float dt) {
      samples.write(first + k, position, direction, middle, dt, static_cast<int32_t>(ray));
    });
  }
  for (int k = found; k < steps; ++k) samples.pad(first + k);
  return t;
}

// Gives ray `ray` its rows, where the samples of the rays up to and with it are those from `begin` to `end`. A ray is kept when it fits
// as a whole; since ends never fall, the kept rays are the first ones. rows: (first, count). counts = (samples written, rays kept,
// samples wanted), of which each is written by the one ray that knows it; they must be 0 before.
HOST_DEVICE bool place_ray(int64_t begin, int64_t end, int64_t ray, int64_t rays_asked, int64_t capacity, int32_t* rows, int32_t* counts) {
  const bool kept = ray < rays_asked && end <= capacity;
  rows[0] = kept ? static_cast<int32_t>(begin) : 0;
  rows[1] = kept ? static_cast<int32_t>(end - begin) : 0;
  if (ray + 1 == rays_asked) {
    counts[2] = static_cast<int32_t>(end < INT32_MAX ? end : INT32_MAX);
    if (kept) counts[0] = static_cast<int32_t>(end), counts[1] = static_cast<int32_t>(rays_asked);
  }
  if (begin <= capacity && end > capacity) counts[0] = static_cast<int32_t>(begin), counts[1] = static_cast<int32_t>(ray);
  return kept;
}

}  // namespace raymarching
