// The CPU form of compositing. One task a ray, which alone writes the ray's rows, so results repeat bit for bit.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "composite_math.h"

namespace raymarching {
namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

constexpr int64_t RAYS_A_TASK = 128;

// A contiguous tensor, undefined for an absent gradient; `pointer` is null then.
Tensor contiguous_or_none(const MaybeTensor& tensor) { return tensor.has_value() && tensor->defined() ? tensor->contiguous() : Tensor(); }

template <class Real>
const Real* pointer(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<Real>() : nullptr;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> composite_rays_train_forward(const Tensor& density_, const Tensor& features_, const Tensor& t_,
                                                                        const Tensor& dt_, const Tensor& rays_, double T_thresh) {
  const Tensor density = density_.contiguous(), features = features_.contiguous(), t = t_.contiguous(), dt = dt_.contiguous(),
               rays = rays_.contiguous();
  const int64_t N = rays.size(0), M = density.size(0), K = features.size(1);
  Tensor composited = at::empty({N, K}, density.options()), opacity = at::empty({N}, density.options()),
         depth = at::empty({N}, density.options());
  Tensor weights = at::zeros_like(density);
  const auto spans = rays.const_data_ptr<int32_t>();
  AT_DISPATCH_FLOATING_TYPES(density.scalar_type(), "composite_rays_train", [&] {
    const Medium<scalar_t> medium{pointer<scalar_t>(density), pointer<scalar_t>(features), pointer<scalar_t>(t), pointer<scalar_t>(dt),
                                  static_cast<int>(K)};
    auto image = composited.mutable_data_ptr<scalar_t>(), whole = opacity.mutable_data_ptr<scalar_t>(),
         far = depth.mutable_data_ptr<scalar_t>();
    auto weight = weights.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, N, RAYS_A_TASK, [&](int64_t begin, int64_t end) {
      for (int64_t ray = begin; ray < end; ++ray)
        composite_ray(medium, span_of(spans, ray, M), static_cast<scalar_t>(T_thresh), image + ray * K, whole[ray], far[ray], weight);
    });
  });
  return {composited, opacity, depth, weights};
}

std::tuple<Tensor, Tensor> composite_rays_train_backward(const MaybeTensor& grad_composited, const MaybeTensor& grad_opacity,
                                                         const MaybeTensor& grad_depth, const MaybeTensor& grad_weights,
                                                         const Tensor& density_, const Tensor& features_, const Tensor& t_,
                                                         const Tensor& dt_, const Tensor& rays_, double T_thresh) {
  const Tensor density = density_.contiguous(), features = features_.contiguous(), t = t_.contiguous(), dt = dt_.contiguous(),
               rays = rays_.contiguous();
  const Tensor at_composited = contiguous_or_none(grad_composited), at_opacity = contiguous_or_none(grad_opacity);
  const Tensor at_depth = contiguous_or_none(grad_depth), at_weights = contiguous_or_none(grad_weights);
  const int64_t N = rays.size(0), M = density.size(0), K = features.size(1);
  Tensor grad_density = at::zeros_like(density), grad_features = at::zeros_like(features);
  const auto spans = rays.const_data_ptr<int32_t>();
  AT_DISPATCH_FLOATING_TYPES(density.scalar_type(), "composite_rays_train_backward", [&] {
    const Medium<scalar_t> medium{pointer<scalar_t>(density), pointer<scalar_t>(features), pointer<scalar_t>(t), pointer<scalar_t>(dt),
                                  static_cast<int>(K)};
    const Cotangents<scalar_t> grad{pointer<scalar_t>(at_composited), pointer<scalar_t>(at_opacity), pointer<scalar_t>(at_depth),
                                    pointer<scalar_t>(at_weights)};
    auto to_density = grad_density.mutable_data_ptr<scalar_t>(), to_features = grad_features.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, N, RAYS_A_TASK, [&](int64_t begin, int64_t end) {
      for (int64_t ray = begin; ray < end; ++ray)
        composite_ray_backward(medium, grad, ray, span_of(spans, ray, M), static_cast<scalar_t>(T_thresh), to_density, to_features);
    });
  });
  return {grad_density, grad_features};
}

void composite_rays(Tensor alive, Tensor t_now, const Tensor& t_next_, const Tensor& density_, const Tensor& features_, const Tensor& t_,
                    const Tensor& dt_, Tensor composited, Tensor opacity, Tensor depth, double T_thresh) {
  const Tensor t_next = t_next_.contiguous(), density = density_.contiguous(), features = features_.contiguous(), t = t_.contiguous(),
               dt = dt_.contiguous();
  const int64_t A = alive.size(0), N = opacity.size(0);
  if (A == 0) return;
  const Medium<float> medium{pointer<float>(density), pointer<float>(features), pointer<float>(t), pointer<float>(dt),
                             static_cast<int>(features.size(1))};
  const Picture picture{composited.mutable_data_ptr<float>(), opacity.mutable_data_ptr<float>(), depth.mutable_data_ptr<float>()};
  const int64_t steps = density.size(0) / A;
  const auto next = pointer<float>(t_next);
  auto ray_of = alive.mutable_data_ptr<int32_t>();
  auto now = t_now.mutable_data_ptr<float>();
  at::parallel_for(0, A, RAYS_A_TASK, [&](int64_t begin, int64_t end) {
    for (int64_t a = begin; a < end; ++a) composite_alive(medium, a, steps, N, next, static_cast<float>(T_thresh), ray_of, now, picture);
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(raymarching, CPU, m) {
  m.impl("composite_rays_train_forward", composite_rays_train_forward);
  m.impl("composite_rays_train_backward", composite_rays_train_backward);
  m.impl("composite_rays", composite_rays);
}

}  // namespace raymarching
