// Launchers of the CUDA kernels: device pointers, sizes and a stream; no torch. Each returns what cudaGetLastError says; no rows, no
// launch.
#pragma once

#include <cuda_runtime_api.h>

#include "composite_math.h"
#include "march_math.h"

namespace raymarching {

// The images' cameras, n of them.
struct Cameras {
  const float *poses, *intrinsics, *distortion;
  const int32_t* lens;
  int64_t count;
};

// N rays. near and noise belong to training; t_now to rendering.
struct Rays {
  const float *origins, *directions, *near, *far, *noise, *t_now;
  int64_t count;
};

cudaError_t launch_generate_rays(const int64_t* image, const float* pixels, const Cameras& cameras, int64_t rays, float* origins,
                                 float* directions, cudaStream_t stream);
cudaError_t launch_near_far(const float* origins, const float* directions, const float* aabb, float min_near, int64_t rays, float* near,
                            float* far, cudaStream_t stream);
cudaError_t launch_morton3D(const int32_t* coords, int64_t cells, int32_t* indices, cudaStream_t stream);
cudaError_t launch_morton3D_invert(const int32_t* indices, int64_t cells, int32_t* coords, cudaStream_t stream);
cudaError_t launch_packbits(const float* density, const float* threshold, int64_t bytes, uint8_t* bitfield, cudaStream_t stream);
cudaError_t launch_contract(float* positions, int64_t rows, cudaStream_t stream);

cudaError_t launch_flatten_rays(const int32_t* rows, int64_t rays, int64_t samples, int32_t* ray_index, cudaStream_t stream);
cudaError_t launch_sph_from_ray(const float* origins, const float* directions, float radius, int64_t rays, float* coords,
                                cudaStream_t stream);

// One for each warp of a block. A step has a few thousand rays: with more of them a block, its warps would work while processors are idle.
constexpr int RAYS_A_BLOCK = 4;

// The march in training, and its padding. state [1 + blocks of RAYS_A_BLOCK rays] and counts [3] must be zero.
cudaError_t launch_march_train(const March& march, const Rays& rays, const int32_t* num_rays, const uint8_t* bitfield, int max_steps,
                               int64_t capacity, int64_t* state, const SampleRows& samples, int32_t* rows, int32_t* counts,
                               cudaStream_t stream);
cudaError_t launch_march_alive(const March& march, const int32_t* alive, int64_t alive_rays, const Rays& rays, const uint8_t* bitfield,
                               int steps, const SampleRows& samples, float* t_next, cudaStream_t stream);

cudaError_t launch_composite(const Medium<float>& medium, const int32_t* rows, int64_t rays, int64_t samples, float T_thresh,
                             float* composited, float* opacity, float* depth, float* weights, cudaStream_t stream);
cudaError_t launch_composite_backward(const Medium<float>& medium, const Cotangents<float>& grad, const int32_t* rows, int64_t rays,
                                      int64_t samples, float T_thresh, float* grad_density, float* grad_features, cudaStream_t stream);
cudaError_t launch_composite_alive(const Medium<float>& medium, int64_t alive_rays, int64_t steps, int64_t rays, const float* t_next,
                                   float T_thresh, int32_t* alive, float* t_now, const Picture& picture, cudaStream_t stream);

}  // namespace raymarching
