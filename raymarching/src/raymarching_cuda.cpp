// The CUDA form of all but compositing (composite_cuda.cpp): tensors to pointers on the tensors' device and its current stream.
#include "raymarching_cuda.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

namespace raymarching {
namespace {

using at::Tensor;
using c10::cuda::CUDAGuard;
using c10::cuda::getCurrentCUDAStream;

std::tuple<Tensor, Tensor> generate_rays(const Tensor& image_, const Tensor& pixels_, const Tensor& poses_, const Tensor& intrinsics_,
                                         const Tensor& distortion_, const Tensor& lens_) {
  const CUDAGuard guard(pixels_.device());
  const Tensor image = image_.contiguous(), pixels = pixels_.contiguous(), poses = poses_.contiguous();
  const Tensor intrinsics = intrinsics_.contiguous(), distortion = distortion_.contiguous(), lens = lens_.contiguous();
  Tensor origins = at::empty({image.size(0), 3}, pixels.options()), directions = at::empty_like(origins);
  const Cameras cameras{poses.const_data_ptr<float>(), intrinsics.const_data_ptr<float>(), distortion.const_data_ptr<float>(),
                        lens.const_data_ptr<int32_t>(), poses.size(0)};
  C10_CUDA_CHECK(launch_generate_rays(image.const_data_ptr<int64_t>(), pixels.const_data_ptr<float>(), cameras, image.size(0),
                                      origins.mutable_data_ptr<float>(), directions.mutable_data_ptr<float>(), getCurrentCUDAStream()));
  return {origins, directions};
}

std::tuple<Tensor, Tensor> near_far_from_aabb(const Tensor& origins_, const Tensor& directions_, const Tensor& aabb_, double min_near) {
  const CUDAGuard guard(origins_.device());
  const Tensor origins = origins_.contiguous(), directions = directions_.contiguous(), aabb = aabb_.contiguous();
  Tensor near = at::empty({origins.size(0)}, origins.options()), far = at::empty_like(near);
  C10_CUDA_CHECK(launch_near_far(origins.const_data_ptr<float>(), directions.const_data_ptr<float>(), aabb.const_data_ptr<float>(),
                                 static_cast<float>(min_near), origins.size(0), near.mutable_data_ptr<float>(),
                                 far.mutable_data_ptr<float>(), getCurrentCUDAStream()));
  return {near, far};
}

Tensor morton3D(const Tensor& coords_) {
  const CUDAGuard guard(coords_.device());
  const Tensor coords = coords_.contiguous();
  Tensor indices = at::empty({coords.size(0)}, coords.options());
  C10_CUDA_CHECK(
      launch_morton3D(coords.const_data_ptr<int32_t>(), coords.size(0), indices.mutable_data_ptr<int32_t>(), getCurrentCUDAStream()));
  return indices;
}

Tensor morton3D_invert(const Tensor& indices_) {
  const CUDAGuard guard(indices_.device());
  const Tensor indices = indices_.contiguous();
  Tensor coords = at::empty({indices.size(0), 3}, indices.options());
  C10_CUDA_CHECK(launch_morton3D_invert(indices.const_data_ptr<int32_t>(), indices.size(0), coords.mutable_data_ptr<int32_t>(),
                                        getCurrentCUDAStream()));
  return coords;
}

Tensor packbits(const Tensor& density_, const Tensor& threshold) {
  const CUDAGuard guard(density_.device());
  const Tensor density = density_.contiguous();
  Tensor bitfield = at::empty({density.size(0) / 8}, density.options().dtype(at::kByte));
  C10_CUDA_CHECK(launch_packbits(density.const_data_ptr<float>(), threshold.const_data_ptr<float>(), bitfield.size(0),
                                 bitfield.mutable_data_ptr<uint8_t>(), getCurrentCUDAStream()));
  return bitfield;
}

Tensor contract_positions(const Tensor& positions) {
  const CUDAGuard guard(positions.device());
  Tensor contracted = positions.clone(at::MemoryFormat::Contiguous);
  C10_CUDA_CHECK(launch_contract(contracted.mutable_data_ptr<float>(), contracted.size(0), getCurrentCUDAStream()));
  return contracted;
}

Tensor flatten_rays(const Tensor& rays_, int64_t samples) {
  const CUDAGuard guard(rays_.device());
  const Tensor rays = rays_.contiguous();
  Tensor ray_index = at::full({samples}, -1, rays.options());
  C10_CUDA_CHECK(launch_flatten_rays(rays.const_data_ptr<int32_t>(), rays.size(0), samples, ray_index.mutable_data_ptr<int32_t>(),
                                     getCurrentCUDAStream()));
  return ray_index;
}

Tensor sph_from_ray(const Tensor& origins_, const Tensor& directions_, double radius) {
  const CUDAGuard guard(origins_.device());
  const Tensor origins = origins_.contiguous(), directions = directions_.contiguous();
  Tensor coords = at::empty({origins.size(0), 2}, origins.options());
  C10_CUDA_CHECK(launch_sph_from_ray(origins.const_data_ptr<float>(), directions.const_data_ptr<float>(), static_cast<float>(radius),
                                     origins.size(0), coords.mutable_data_ptr<float>(), getCurrentCUDAStream()));
  return coords;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> march_rays_train(const Tensor& origins_, const Tensor& directions_,
                                                                                    const Tensor& near_, const Tensor& far_,
                                                                                    const Tensor& noise_, const Tensor& num_rays,
                                                                                    const Tensor& bitfield_, double bound, int64_t cascades,
                                                                                    int64_t grid_size, bool contract, double dt_gamma,
                                                                                    int64_t max_steps, int64_t capacity) {
  const CUDAGuard guard(origins_.device());
  const March march = make_march(bound, cascades, grid_size, contract, dt_gamma, max_steps);
  const Tensor origins = origins_.contiguous(), directions = directions_.contiguous(), near = near_.contiguous(), far = far_.contiguous();
  const Tensor noise = noise_.contiguous(), bitfield = bitfield_.contiguous();
  const int64_t N = origins.size(0);
  const auto options = origins.options(), integers = options.dtype(at::kInt);
  Tensor positions = at::empty({capacity, 3}, options), sample_directions = at::empty({capacity, 3}, options);
  Tensor t = at::empty({capacity}, options), dt = at::empty({capacity}, options), ray_index = at::empty({capacity}, integers);
  Tensor rows = at::empty({N, 2}, integers), counts = at::zeros({3}, integers);
  Tensor state = at::zeros({1 + (N + RAYS_A_BLOCK - 1) / RAYS_A_BLOCK}, options.dtype(at::kLong));

  const Rays rays{origins.const_data_ptr<float>(),
                  directions.const_data_ptr<float>(),
                  near.const_data_ptr<float>(),
                  far.const_data_ptr<float>(),
                  noise.const_data_ptr<float>(),
                  nullptr,
                  N};
  const SampleRows samples{positions.mutable_data_ptr<float>(), sample_directions.mutable_data_ptr<float>(), t.mutable_data_ptr<float>(),
                           dt.mutable_data_ptr<float>(), ray_index.mutable_data_ptr<int32_t>()};
  const int limit = static_cast<int>(std::min<int64_t>(max_steps, INT32_MAX));
  C10_CUDA_CHECK(launch_march_train(march, rays, num_rays.const_data_ptr<int32_t>(), bitfield.const_data_ptr<uint8_t>(), limit, capacity,
                                    state.mutable_data_ptr<int64_t>(), samples, rows.mutable_data_ptr<int32_t>(),
                                    counts.mutable_data_ptr<int32_t>(), getCurrentCUDAStream()));
  return {positions, sample_directions, t, dt, ray_index, rows, counts};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> march_rays(const Tensor& alive_, const Tensor& t_now_, const Tensor& origins_,
                                                              const Tensor& directions_, const Tensor& far_, const Tensor& bitfield_,
                                                              int64_t steps, double bound, int64_t cascades, int64_t grid_size,
                                                              bool contract, double dt_gamma, int64_t max_steps) {
  const CUDAGuard guard(origins_.device());
  const March march = make_march(bound, cascades, grid_size, contract, dt_gamma, max_steps);
  const Tensor alive = alive_.contiguous(), t_now = t_now_.contiguous(), origins = origins_.contiguous(),
               directions = directions_.contiguous();
  const Tensor far = far_.contiguous(), bitfield = bitfield_.contiguous();
  const int64_t A = alive.size(0);
  const auto options = origins.options();
  Tensor positions = at::empty({A * steps, 3}, options), sample_directions = at::empty({A * steps, 3}, options);
  Tensor t = at::empty({A * steps}, options), dt = at::empty({A * steps}, options), t_next = at::empty({A}, options);
  const Rays rays{origins.const_data_ptr<float>(),
                  directions.const_data_ptr<float>(),
                  nullptr,
                  far.const_data_ptr<float>(),
                  nullptr,
                  t_now.const_data_ptr<float>(),
                  origins.size(0)};
  const SampleRows samples{positions.mutable_data_ptr<float>(), sample_directions.mutable_data_ptr<float>(), t.mutable_data_ptr<float>(),
                           dt.mutable_data_ptr<float>(), nullptr};
  C10_CUDA_CHECK(launch_march_alive(march, alive.const_data_ptr<int32_t>(), A, rays, bitfield.const_data_ptr<uint8_t>(),
                                    static_cast<int>(steps), samples, t_next.mutable_data_ptr<float>(), getCurrentCUDAStream()));
  return {positions, sample_directions, t, dt, t_next};
}

}  // namespace

TORCH_LIBRARY_IMPL(raymarching, CUDA, m) {
  m.impl("generate_rays", generate_rays);
  m.impl("near_far_from_aabb", near_far_from_aabb);
  m.impl("morton3D", morton3D);
  m.impl("morton3D_invert", morton3D_invert);
  m.impl("packbits", packbits);
  m.impl("contract", contract_positions);
  m.impl("flatten_rays", flatten_rays);
  m.impl("sph_from_ray", sph_from_ray);
  m.impl("march_rays_train", march_rays_train);
  m.impl("march_rays", march_rays);
}

}  // namespace raymarching
