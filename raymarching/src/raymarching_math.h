// The mathematics of rays, boxes, Morton codes and contraction, one copy for the CPU loops and the CUDA kernels.
//
// Notation: a ray is origin + t * direction with a unit direction, t in world units. A sample covers [t - dt/2, t + dt/2].
// Wherever a product feeds a sum on the march's path, fmaf is written out: then there is nothing left that one compiler fuses and another
// does not, and CPU and GPU take exactly the same steps.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#ifndef HOST_DEVICE
#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline
#endif
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

// ------------------------------------------------------------------------------------------------------- packing and spheres

// Writes the number of a ray into the rows of its samples. span: (first, count), which a caller has checked.
HOST_DEVICE void number_samples(int64_t first, int64_t count, int64_t begin, int64_t stride, int32_t ray, int32_t* ray_index) {
  for (int64_t k = begin; k < count; k += stride) ray_index[first + k] = ray;
}

// Where a ray leaves the sphere around the origin, as (polar angle from +y, azimuth from +x to +z), each scaled to [-1, 1]. NaN for a ray
// that misses.
HOST_DEVICE void sphere_coordinates(const float* origin, const float* direction, float radius, float* coords) {
  const float a = direction[0] * direction[0] + direction[1] * direction[1] + direction[2] * direction[2];
  const float b = origin[0] * direction[0] + origin[1] * direction[1] + origin[2] * direction[2];
  const float c = origin[0] * origin[0] + origin[1] * origin[1] + origin[2] * origin[2] - radius * radius;
  const float t = (sqrtf(b * b - a * c) - b) / a;
  const float x = origin[0] + t * direction[0], y = origin[1] + t * direction[1], z = origin[2] + t * direction[2];
  const float pi = 3.14159265f;
  coords[0] = 2 / pi * atan2f(sqrtf(x * x + z * z), y) - 1;
  coords[1] = atan2f(z, x) / pi;
}

}  // namespace raymarching
