// The mathematics of rays, marching and compositing, one copy for the CPU loops and the CUDA kernels.
//
// Notation: a ray is origin + t * direction with a unit direction, t in world units. A sample covers [t - dt/2, t + dt/2].
// Wherever a product feeds a sum on the march's path, fmaf is written out: then there is nothing left that one compiler fuses and another
// does not, and CPU and GPU take exactly the same steps.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline
#endif

namespace raymarching {

constexpr float SQRT3 = 1.7320508075688772f;

// Without fminf's promise about NaN, for which g++ makes a call: NaN in the first argument stays.
HOST_DEVICE float least(float a, float b) { return b < a ? b : a; }
HOST_DEVICE float greatest(float a, float b) { return b > a ? b : a; }

// ---------------------------------------------------------------------------------------------------------------- lenses

constexpr int PERSPECTIVE = 0;
constexpr int FISHEYE = 1;
constexpr int NEWTON_STEPS = 12;

// The lens of one image: k1, k2, k3, k4 radial, p1, p2 tangential (OpenCV's models).
struct Lens {
  const float* k;
  int kind;
};

// Where the perspective lens puts the ideal image point (x, y), and the Jacobian, which is symmetric: xx, xy, yy.
HOST_DEVICE void distort(const Lens& lens, float x, float y, float distorted[2], float jacobian[3]) {
  const float k1 = lens.k[0], k2 = lens.k[1], k3 = lens.k[2], k4 = lens.k[3], p1 = lens.k[4], p2 = lens.k[5];
  const float r2 = x * x + y * y;
  const float radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)));
  const float slope = k1 + r2 * (2 * k2 + r2 * (3 * k3 + r2 * 4 * k4));  // of `radial`, with respect to r2
  distorted[0] = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x);
  distorted[1] = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y;
  jacobian[0] = radial + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x;
  jacobian[1] = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y;
  jacobian[2] = radial + 2 * y * y * slope + 6 * p1 * y + 2 * p2 * x;
}

// Inverts `distort` in place by Newton steps that are halved until they help, so a point that no ideal point maps to gives the
// nearest one found instead of an escape to infinity.
HOST_DEVICE void undistort(const Lens& lens, float point[2]) {
  const float target[2] = {point[0], point[1]};
  float image[2], jacobian[3], scale = 1;
  distort(lens, point[0], point[1], image, jacobian);
  float error[2] = {image[0] - target[0], image[1] - target[1]};
  for (int step = 0; step < NEWTON_STEPS && (error[0] != 0 || error[1] != 0); ++step) {
    const float scaled = scale / (jacobian[0] * jacobian[2] - jacobian[1] * jacobian[1]);
    const float x = point[0] - scaled * (jacobian[2] * error[0] - jacobian[1] * error[1]);
    const float y = point[1] - scaled * (jacobian[0] * error[1] - jacobian[1] * error[0]);
    float trial[3];
    distort(lens, x, y, image, trial);
    const float ex = image[0] - target[0], ey = image[1] - target[1];
    if (ex * ex + ey * ey < error[0] * error[0] + error[1] * error[1]) {
      point[0] = x, point[1] = y, error[0] = ex, error[1] = ey, scale = 1;
      for (int i = 0; i < 3; ++i) jacobian[i] = trial[i];
    } else {
      scale *= 0.5f;
    }
  }
}

// The angle from the optical axis at which the fisheye lens yields the image radius `radius`: theta (1 + k1 theta^2 + ...) = radius.
HOST_DEVICE float fisheye_angle(const Lens& lens, float radius) {
  const float k1 = lens.k[0], k2 = lens.k[1], k3 = lens.k[2], k4 = lens.k[3], pi = 3.14159265f;
  float theta = fminf(radius, pi), best = theta, best_error = FLT_MAX, scale = 1, step = 0;
  for (int i = 0; i <= NEWTON_STEPS && best_error != 0; ++i) {
    const float s = theta * theta;
    const float error = theta * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4)))) - radius;
    if (fabsf(error) < best_error) {
      best = theta, best_error = fabsf(error), scale = 1;
      step = error / (1 + s * (3 * k1 + s * (5 * k2 + s * (7 * k3 + s * 9 * k4))));
    } else {
      scale *= 0.5f;
    }
    theta = fminf(fmaxf(best - scale * step, 0.f), pi);
  }
  return best;
}

// The camera of one image: pose [3, 4] camera to world (null: there is no such image), intrinsics fx, fy, cx, cy.
struct Camera {
  const float *pose, *intrinsics;
  Lens lens;
};

HOST_DEVICE Camera camera_of(int64_t image, int64_t images, const float* poses, const float* intrinsics, const float* distortion,
                             const int32_t* lens) {
  if (image < 0 || image >= images) return {nullptr, nullptr, {nullptr, PERSPECTIVE}};
  return {poses + 12 * image, intrinsics + 4 * image, {distortion + 6 * image, lens[image]}};
}

// The ray through a pixel (x right, y down) in world axes; NaN, which misses every box, where there is no such image.
// The camera looks along -z with y up, so the lens models' (x, y, 1) becomes (x, -y, -1).
HOST_DEVICE void pixel_ray(const float* pixel, const Camera& camera, float* origin, float* direction) {
  if (!camera.pose) {
    for (int i = 0; i < 3; ++i) origin[i] = direction[i] = NAN;
    return;
  }
  const float *pose = camera.pose, *intrinsics = camera.intrinsics;
  const Lens& lens = camera.lens;
  float point[2] = {(pixel[0] - intrinsics[2]) / intrinsics[0], (pixel[1] - intrinsics[3]) / intrinsics[1]};
  float depth = 1;
  if (lens.kind == FISHEYE) {
    const float radius = sqrtf(point[0] * point[0] + point[1] * point[1]);
    const float theta = fisheye_angle(lens, radius);
    const float stretch = radius > 0 ? sinf(theta) / radius : 1.f;
    point[0] *= stretch, point[1] *= stretch, depth = cosf(theta);
  } else {
    undistort(lens, point);
  }
  float world[3], square = 0;
  for (int i = 0; i < 3; ++i) {
    world[i] = pose[4 * i] * point[0] - pose[4 * i + 1] * point[1] - pose[4 * i + 2] * depth;
    square += world[i] * world[i];
    origin[i] = pose[4 * i + 3];
  }
  for (int i = 0; i < 3; ++i) direction[i] = world[i] / sqrtf(square);
}

// Where the ray is inside the box (slab test). A miss, a NaN or a zero direction gives near = far = FLT_MAX, on which no march starts.
HOST_DEVICE void near_far(const float* origin, const float* direction, const float* aabb, float min_near, float& near, float& far) {
  float first = min_near, last = FLT_MAX;
  bool hit = true;
  for (int i = 0; i < 3; ++i) {
    if (direction[i] == 0) {
      hit = hit && origin[i] >= aabb[i] && origin[i] <= aabb[i + 3];
      continue;
    }
    const float low = (aabb[i] - origin[i]) / direction[i], high = (aabb[i + 3] - origin[i]) / direction[i];
    hit = hit && (low <= high || high < low);  // false for NaN
    first = fmaxf(first, fminf(low, high));
    last = fminf(last, fmaxf(low, high));
  }
  hit = hit && first < last && last < FLT_MAX;
  near = hit ? first : FLT_MAX;
  far = hit ? last : FLT_MAX;
}

// ------------------------------------------------------------------------------------------------------------ Morton codes

HOST_DEVICE uint32_t spread_bits(uint32_t x) {  // ten bits, two zeros before each
  x = (x | (x << 16)) & 0x030000ffu;
  x = (x | (x << 8)) & 0x0300f00fu;
  x = (x | (x << 4)) & 0x030c30c3u;
  return (x | (x << 2)) & 0x09249249u;
}

HOST_DEVICE uint32_t gather_bits(uint32_t x) {
  x &= 0x09249249u;
  x = (x | (x >> 2)) & 0x030c30c3u;
  x = (x | (x >> 4)) & 0x0300f00fu;
  x = (x | (x >> 8)) & 0x030000ffu;
  return (x | (x >> 16)) & 0x3ffu;
}

HOST_DEVICE uint32_t morton(uint32_t x, uint32_t y, uint32_t z) { return spread_bits(x) | spread_bits(y) << 1 | spread_bits(z) << 2; }

HOST_DEVICE uint8_t packed_byte(const float* density, float threshold) {
  uint32_t byte = 0;
  for (int bit = 0; bit < 8; ++bit) byte |= static_cast<uint32_t>(density[bit] > threshold) << bit;
  return static_cast<uint8_t>(byte);
}

// ------------------------------------------------------------------------------------------------------------- contraction

HOST_DEVICE float max_norm(const float* p) { return greatest(fabsf(p[0]), greatest(fabsf(p[1]), fabsf(p[2]))); }

// MeRF (arXiv 2302.12249, equation 2): the unit cube stays, all else goes to max-norm below 2. Of equal dominant axes the first counts.
HOST_DEVICE void contract(float* p) {
  const float m = max_norm(p);
  if (!(m > 1)) return;
  const int dominant = fabsf(p[0]) == m ? 0 : fabsf(p[1]) == m ? 1 : 2;
  for (int i = 0; i < 3; ++i) p[i] = i == dominant ? copysignf(2 - 1 / m, p[i]) : p[i] / m;
}

// ------------------------------------------------------------------------------------------------------------------- march

// What is the same for every ray of a march.
struct March {
  float bound, dt_gamma, dt_min, dt_max;
  int cascades, grid_size;
  bool contracted;
};

inline March make_march(double bound, int64_t cascades, int64_t grid_size, bool contracted, double dt_gamma, int64_t max_steps) {
  March m;
  m.bound = static_cast<float>(bound);
  m.dt_gamma = static_cast<float>(dt_gamma);
  m.dt_max = 2 * SQRT3 * m.bound / static_cast<float>(grid_size);
  m.dt_min = fminf(2 * SQRT3 / static_cast<float>(max_steps), m.dt_max);
  m.cascades = static_cast<int>(cascades);
  m.grid_size = static_cast<int>(grid_size);
  m.contracted = contracted;
  return m;
}

HOST_DEVICE float step_size(const March& m, float t) { return least(greatest(t * m.dt_gamma, m.dt_min), m.dt_max); }

HOST_DEVICE float march_start(const March& m, float near, float noise) { return fmaf(noise, step_size(m, near), near); }

// A place on a ray's lattice of steps: the step covers [t, t + dt].
struct Step {
  float t, dt;

  HOST_DEVICE Step(const March& m, float start) : t(start), dt(step_size(m, start)) {}

  HOST_DEVICE float middle() const { return fmaf(0.5f, dt, t); }

  // Far from the origin a step can be lost to rounding: the march ends there.
  HOST_DEVICE void advance(const March& m) {
    t = t + dt > t ? t + dt : FLT_MAX;
    dt = step_size(m, t);
  }
};

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
  float half_side;  // of the cascade's cube
};

HOST_DEVICE Cell cell_of(const March& m, const float* position, float dt) {
  Cell cell;
  cell.cascade = cascade_of(m, position, dt);
  cell.half_side = least(power_of_two(cell.cascade), m.bound);
  const float half_grid = 0.5f * static_cast<float>(m.grid_size);
  const float last = static_cast<float>(m.grid_size - 1);
  for (int i = 0; i < 3; ++i) {
    const float at = fmaf(position[i], half_grid / cell.half_side, half_grid);
    cell.index[i] = static_cast<int>(least(greatest(0.f, at), last));  // the order turns NaN into 0
  }
  return cell;
}

HOST_DEVICE bool occupied(const March& m, const Cell& cell, const uint8_t* bitfield) {
  const int64_t cells = static_cast<int64_t>(m.grid_size) * m.grid_size * m.grid_size;
  const int64_t bit = cell.cascade * cells + morton(cell.index[0], cell.index[1], cell.index[2]);
  return bitfield[bit >> 3] >> (bit & 7) & 1;
}

// t where the ray leaves the cell that holds its point at t.
HOST_DEVICE float cell_exit(const March& m, const Cell& cell, const float* position, const float* direction, float t) {
  const float side = 2 * cell.half_side / static_cast<float>(m.grid_size);
  float ahead = FLT_MAX;
  for (int i = 0; i < 3; ++i) {
    if (direction[i] == 0) continue;
    const float face = fmaf(static_cast<float>(cell.index[i] + (direction[i] > 0)), side, -cell.half_side);
    ahead = least(ahead, (face - position[i]) / direction[i]);
  }
  return t + greatest(0.f, ahead);
}

// Walks the ray from the step that starts at t (updated) until `far` or until `limit` samples are found in occupied cells; each goes to
// emit(k, position, middle, dt). Returns how many. Steps form one lattice whatever is skipped: an empty cell is left by repeating steps.
template <class Emit>
HOST_DEVICE int march(const March& m, const float* origin, const float* direction, const uint8_t* bitfield, float& t, float far, int limit,
                      Emit&& emit) {
  int count = 0;
  Step step(m, t);
  while (step.t < far && count < limit) {
    const float dt = step.dt, middle = step.middle();
    float position[3];
    for (int i = 0; i < 3; ++i) position[i] = fmaf(middle, direction[i], origin[i]);
    const bool bent = m.contracted && max_norm(position) > 1;  // a bent ray has no straight way to the face of its cell
    if (bent) contract(position);
    const Cell cell = cell_of(m, position, dt);
    if (occupied(m, cell, bitfield)) {
      emit(count++, position, middle, dt);
      step.advance(m);
    } else {
      const float exit = bent ? middle : cell_exit(m, cell, position, direction, middle);
      do step.advance(m);
      while (step.t < far && step.middle() < exit);
    }
  }
  t = step.t;
  return count;
}

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

// Gives a ray its rows. ends [N]: running sum of the rays' counts. A ray is kept when it fits as a whole; since `ends` never falls, the
// kept rays are the first ones. rows: (first, count). The last kept ray reports counts = (samples written, rays kept, samples wanted).
HOST_DEVICE void place_ray(const int64_t* ends, int64_t ray, int64_t rays, int64_t rays_asked, int64_t capacity, int32_t* rows,
                           int32_t* counts) {
  rays_asked = rays_asked < rays ? rays_asked : rays;
  const int64_t begin = ray > 0 ? ends[ray - 1] : 0, end = ends[ray];
  const bool kept = ray < rays_asked && end <= capacity;
  rows[0] = kept ? static_cast<int32_t>(begin) : 0;
  rows[1] = kept ? static_cast<int32_t>(end - begin) : 0;
  if (kept && (ray + 1 == rays_asked || ends[ray + 1] > capacity))
    counts[0] = static_cast<int32_t>(end), counts[1] = static_cast<int32_t>(ray + 1);
  if (!kept && ray == 0) counts[0] = counts[1] = 0;
  if (ray + 1 == rays) counts[2] = static_cast<int32_t>(end < INT32_MAX ? end : INT32_MAX);
}

}  // namespace raymarching
