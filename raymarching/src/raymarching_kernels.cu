// The CUDA form of rays, Morton codes, packing, contraction and the marches: one thread a row or ray, around the functions that the CPU
// runs.
#include <algorithm>

#include "launch.cuh"
#include "raymarching_cuda.h"

#define KERNEL __global__ void __launch_bounds__(THREADS)

namespace raymarching {
namespace {

KERNEL generate_rays_kernel(int64_t rays, const int64_t* image, const float* pixels, Cameras cameras, float* origins, float* directions) {
  const int64_t i = thread_row();
  if (i >= rays) return;
  const Camera camera = camera_of(image[i], cameras.count, cameras.poses, cameras.intrinsics, cameras.distortion, cameras.lens);
  pixel_ray(pixels + 2 * i, camera, origins + 3 * i, directions + 3 * i);
}

KERNEL near_far_kernel(int64_t rays, const float* origins, const float* directions, const float* aabb, float min_near, float* near,
                       float* far) {
  const int64_t i = thread_row();
  if (i < rays) near_far(origins + 3 * i, directions + 3 * i, aabb, min_near, near[i], far[i]);
}

KERNEL morton3D_kernel(int64_t cells, const int32_t* coords, int32_t* indices) {
  const int64_t i = thread_row();
  if (i < cells) indices[i] = static_cast<int32_t>(morton(coords[3 * i], coords[3 * i + 1], coords[3 * i + 2]));
}

KERNEL morton3D_invert_kernel(int64_t cells, const int32_t* indices, int32_t* coords) {
  const int64_t i = thread_row();
  if (i >= cells) return;
  for (int axis = 0; axis < 3; ++axis) coords[3 * i + axis] = static_cast<int32_t>(gather_bits(static_cast<uint32_t>(indices[i]) >> axis));
}

KERNEL packbits_kernel(int64_t bytes, const float* density, const float* threshold, uint8_t* bitfield) {
  const int64_t i = thread_row();
  if (i < bytes) bitfield[i] = packed_byte(density + 8 * i, *threshold);
}

KERNEL contract_kernel(int64_t rows, float* positions) {
  const int64_t i = thread_row();
  if (i < rows) contract(positions + 3 * i);
}

KERNEL count_samples_kernel(March m, Rays rays, const int32_t* num_rays, const uint8_t* __restrict__ bitfield, int max_steps,
                            int32_t* found) {
  const int64_t i = thread_row();
  if (i >= rays.count) return;
  float t = march_start(m, rays.near[i], rays.noise[i]);
  const float far = i < *num_rays ? rays.far[i] : t;
  found[i] = march(m, rays.origins + 3 * i, rays.directions + 3 * i, bitfield, t, far, max_steps, [](int, const float*, float, float) {});
}

KERNEL place_rays_kernel(int64_t rays, const int64_t* ends, const int32_t* num_rays, int64_t capacity, int32_t* rows, int32_t* counts) {
  const int64_t i = thread_row();
  if (i < rays) place_ray(ends, i, rays, *num_rays, capacity, rows + 2 * i, counts);
}

// Thread i walks ray i, and pads row i where that row is left over: two jobs on different rows in one launch.
KERNEL write_samples_kernel(March m, Rays rays, const uint8_t* __restrict__ bitfield, const int32_t* rows, const int32_t* counts,
                            int64_t capacity, SampleRows samples) {
  const int64_t i = thread_row();
  if (i < rays.count && rows[2 * i + 1] > 0) {
    const float* direction = rays.directions + 3 * i;
    const int64_t first = rows[2 * i];
    float t = march_start(m, rays.near[i], rays.noise[i]);
    march(m, rays.origins + 3 * i, direction, bitfield, t, rays.far[i], rows[2 * i + 1],
          [&](int k, const float* position, float middle, float dt) {
            samples.write(first + k, position, direction, middle, dt, static_cast<int32_t>(i));
          });
  }
  if (i < capacity && i >= counts[0]) samples.pad(i);
}

KERNEL march_alive_kernel(March m, const int32_t* alive, int64_t alive_rays, Rays rays, const uint8_t* __restrict__ bitfield, int steps,
                          SampleRows samples, float* t_next) {
  const int64_t a = thread_row();
  if (a >= alive_rays) return;
  t_next[a] =
      march_alive(m, alive[a], rays.count, rays.t_now, rays.origins, rays.directions, rays.far, bitfield, a * steps, steps, samples);
}

}  // namespace

cudaError_t launch_generate_rays(const int64_t* image, const float* pixels, const Cameras& cameras, int64_t rays, float* origins,
                                 float* directions, cudaStream_t stream) {
  return launch(generate_rays_kernel, rays, stream, rays, image, pixels, cameras, origins, directions);
}

cudaError_t launch_near_far(const float* origins, const float* directions, const float* aabb, float min_near, int64_t rays, float* near,
                            float* far, cudaStream_t stream) {
  return launch(near_far_kernel, rays, stream, rays, origins, directions, aabb, min_near, near, far);
}

cudaError_t launch_morton3D(const int32_t* coords, int64_t cells, int32_t* indices, cudaStream_t stream) {
  return launch(morton3D_kernel, cells, stream, cells, coords, indices);
}

cudaError_t launch_morton3D_invert(const int32_t* indices, int64_t cells, int32_t* coords, cudaStream_t stream) {
  return launch(morton3D_invert_kernel, cells, stream, cells, indices, coords);
}

cudaError_t launch_packbits(const float* density, const float* threshold, int64_t bytes, uint8_t* bitfield, cudaStream_t stream) {
  return launch(packbits_kernel, bytes, stream, bytes, density, threshold, bitfield);
}

cudaError_t launch_contract(float* positions, int64_t rows, cudaStream_t stream) {
  return launch(contract_kernel, rows, stream, rows, positions);
}

cudaError_t launch_count_samples(const March& march, const Rays& rays, const int32_t* num_rays, const uint8_t* bitfield, int max_steps,
                                 int32_t* found, cudaStream_t stream) {
  return launch(count_samples_kernel, rays.count, stream, march, rays, num_rays, bitfield, max_steps, found);
}

cudaError_t launch_place_rays(const int64_t* ends, int64_t rays, const int32_t* num_rays, int64_t capacity, int32_t* rows, int32_t* counts,
                              cudaStream_t stream) {
  return launch(place_rays_kernel, rays, stream, rays, ends, num_rays, capacity, rows, counts);
}

cudaError_t launch_write_samples(const March& march, const Rays& rays, const uint8_t* bitfield, const int32_t* rows, const int32_t* counts,
                                 int64_t capacity, const SampleRows& samples, cudaStream_t stream) {
  return launch(write_samples_kernel, std::max(rays.count, capacity), stream, march, rays, bitfield, rows, counts, capacity, samples);
}

cudaError_t launch_march_alive(const March& march, const int32_t* alive, int64_t alive_rays, const Rays& rays, const uint8_t* bitfield,
                               int steps, const SampleRows& samples, float* t_next, cudaStream_t stream) {
  return launch(march_alive_kernel, alive_rays, stream, march, alive, alive_rays, rays, bitfield, steps, samples, t_next);
}

}  // namespace raymarching
