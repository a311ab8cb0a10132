// The CUDA form of compositing: tensors to pointers on the tensors' device and its current stream.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "raymarching_cuda.h"

namespace raymarching {
namespace {

using at::Tensor;
using c10::cuda::CUDAGuard;
using c10::cuda::getCurrentCUDAStream;
using MaybeTensor = std::optional<Tensor>;

// Holds the contiguous tensors while their pointers are in use.
struct Held {
  Tensor density, features, t, dt;

  Held(const Tensor& density_, const Tensor& features_, const Tensor& t_, const Tensor& dt_)
      : density(density_.contiguous()), features(features_.contiguous()), t(t_.contiguous()), dt(dt_.contiguous()) {
    TORCH_CHECK_TYPE(density.scalar_type() == at::kFloat, "density must be torch.float32 on a GPU, got ", density.scalar_type(),
                     ": convert all inputs, or composite on the CPU");
  }

  Medium<float> medium() const {
    return {density.const_data_ptr<float>(), features.const_data_ptr<float>(), t.const_data_ptr<float>(), dt.const_data_ptr<float>(),
            static_cast<int>(features.size(1))};
  }
};

Tensor contiguous_or_none(const MaybeTensor& tensor) { return tensor.has_value() && tensor->defined() ? tensor->contiguous() : Tensor(); }

const float* pointer(const Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr; }

std::tuple<Tensor, Tensor, Tensor, Tensor> composite_rays_train_forward(const Tensor& density, const Tensor& features, const Tensor& t,
                                                                        const Tensor& dt, const Tensor& rays_, double T_thresh) {
  const CUDAGuard guard(density.device());
  const Held held(density, features, t, dt);
  const Tensor rays = rays_.contiguous();
  const int64_t N = rays.size(0);
  Tensor composited = at::empty({N, features.size(1)}, density.options()), opacity = at::empty({N}, density.options());
  Tensor depth = at::empty({N}, density.options()), weights = at::zeros_like(held.density);
  C10_CUDA_CHECK(launch_composite(held.medium(), rays.const_data_ptr<int32_t>(), N, density.size(0), static_cast<float>(T_thresh),
                                  composited.mutable_data_ptr<float>(), opacity.mutable_data_ptr<float>(), depth.mutable_data_ptr<float>(),
                                  weights.mutable_data_ptr<float>(), getCurrentCUDAStream()));
  return {composited, opacity, depth, weights};
}

std::tuple<Tensor, Tensor> composite_rays_train_backward(const MaybeTensor& grad_composited, const MaybeTensor& grad_opacity,
                                                         const MaybeTensor& grad_depth, const MaybeTensor& grad_weights,
                                                         const Tensor& density, const Tensor& features, const Tensor& t, const Tensor& dt,
                                                         const Tensor& rays_, double T_thresh) {
  const CUDAGuard guard(density.device());
  const Held held(density, features, t, dt);
  const Tensor rays = rays_.contiguous();
  const Tensor at_composited = contiguous_or_none(grad_composited), at_opacity = contiguous_or_none(grad_opacity);
  const Tensor at_depth = contiguous_or_none(grad_depth), at_weights = contiguous_or_none(grad_weights);
  const Cotangents<float> grad{pointer(at_composited), pointer(at_opacity), pointer(at_depth), pointer(at_weights)};
  Tensor grad_density = at::zeros_like(held.density), grad_features = at::zeros_like(held.features);
  C10_CUDA_CHECK(launch_composite_backward(held.medium(), grad, rays.const_data_ptr<int32_t>(), rays.size(0), density.size(0),
                                           static_cast<float>(T_thresh), grad_density.mutable_data_ptr<float>(),
                                           grad_features.mutable_data_ptr<float>(), getCurrentCUDAStream()));
  return {grad_density, grad_features};
}

void composite_rays(Tensor alive, Tensor t_now, const Tensor& t_next_, const Tensor& density, const Tensor& features, const Tensor& t,
                    const Tensor& dt, Tensor composited, Tensor opacity, Tensor depth, double T_thresh) {
  const CUDAGuard guard(density.device());
  const Held held(density, features, t, dt);
  const Tensor t_next = t_next_.contiguous();
  const int64_t A = alive.size(0);
  if (A == 0) return;
  const Picture picture{composited.mutable_data_ptr<float>(), opacity.mutable_data_ptr<float>(), depth.mutable_data_ptr<float>()};
  C10_CUDA_CHECK(launch_composite_alive(held.medium(), A, density.size(0) / A, opacity.size(0), pointer(t_next),
                                        static_cast<float>(T_thresh), alive.mutable_data_ptr<int32_t>(), t_now.mutable_data_ptr<float>(),
                                        picture, getCurrentCUDAStream()));
}

}  // namespace

TORCH_LIBRARY_IMPL(raymarching, CUDA, m) {
  m.impl("composite_rays_train_forward", composite_rays_train_forward);
  m.impl("composite_rays_train_backward", composite_rays_train_backward);
  m.impl("composite_rays", composite_rays);
}

}  // namespace raymarching
