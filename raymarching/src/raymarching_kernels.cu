// The CUDA form of rays, Morton codes, packing and contraction: one thread a row, around the functions that the CPU runs.
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

KERNEL flatten_rays_kernel(int64_t rays, const int32_t* rows, int64_t samples, int32_t* ray_index) {
  const int64_t ray = thread_row() / 32;  // a warp a ray: its lanes write neighbouring rows
  if (ray >= rays) return;
  const Span span = span_of(rows, ray, samples);
  number_samples(span.first, span.count, threadIdx.x % 32, 32, static_cast<int32_t>(ray), ray_index);
}

KERNEL sph_from_ray_kernel(int64_t rays, const float* origins, const float* directions, float radius, float* coords) {
  const int64_t i = thread_row();
  if (i < rays) sphere_coordinates(origins + 3 * i, directions + 3 * i, radius, coords + 2 * i);
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

cudaError_t launch_flatten_rays(const int32_t* rows, int64_t rays, int64_t samples, int32_t* ray_index, cudaStream_t stream) {
  return launch(flatten_rays_kernel, rays * 32, stream, rays, rows, samples, ray_index);
}

cudaError_t launch_sph_from_ray(const float* origins, const float* directions, float radius, int64_t rays, float* coords,
                                cudaStream_t stream) {
  return launch(sph_from_ray_kernel, rays, stream, rays, origins, directions, radius, coords);
}

}  // namespace raymarching
