// The CUDA form of the loss: tensors to pointers on the tensors' device and its current stream.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <type_traits>

#include "loss_cuda.h"

namespace raymarching {
namespace {

using at::Tensor;

// Contiguous, and on a boundary of a row, which the kernel reads as a whole.
Tensor whole_rows(const Tensor& table) {
  const Tensor rows = table.contiguous();
  return reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % (rows.size(1) * rows.element_size()) ? rows.clone() : rows;
}

std::tuple<Tensor, Tensor, Tensor> composite_loss(const Tensor& raw_, const Tensor& dt_, const Tensor& rays_, const Tensor& counts_,
                                                  const Tensor& target_, const Tensor& background_, double T_thresh, double entropy_weight,
                                                  const std::optional<Tensor>& spacing_, double distortion_weight,
                                                  const std::optional<Tensor>& t_, double near_scale, bool want_weights) {
  TORCH_CHECK_TYPE(raw_.scalar_type() == at::kFloat || raw_.scalar_type() == at::kHalf,
                   "raw must be torch.float32 or torch.float16 on a GPU, got ", raw_.scalar_type(), ": convert it first");
  const c10::cuda::CUDAGuard guard(raw_.device());
  const Tensor raw = whole_rows(raw_), dt = dt_.contiguous(), rays = rays_.contiguous(), counts = counts_.contiguous(),
               target = target_.contiguous(), background = background_.contiguous(),
               spacing = spacing_ ? whole_rows(*spacing_) : Tensor(), t = t_ ? t_->contiguous() : Tensor();
  Tensor delta = at::empty(raw.sizes(), dt.options()), numbers = at::empty({2}, dt.options()),
         weights = at::empty({want_weights ? raw.size(0) : 0}, dt.options());
  const auto run = [&](auto* logits) {
    using Raw = std::remove_pointer_t<decltype(logits)>;
    const LossProblem<Raw, float> problem{static_cast<const Raw*>(raw.const_data_ptr()),
                                          dt.const_data_ptr<float>(),
                                          rays.const_data_ptr<int32_t>(),
                                          counts.const_data_ptr<int32_t>(),
                                          target.const_data_ptr<float>(),
                                          background.const_data_ptr<float>(),
                                          rays.size(0),
                                          raw.size(0),
                                          static_cast<int>(target.size(1)),
                                          static_cast<float>(T_thresh),
                                          static_cast<float>(entropy_weight),
                                          spacing.defined() ? spacing.const_data_ptr<float>() : nullptr,
                                          t.defined() ? t.const_data_ptr<float>() : nullptr,
                                          spacing.defined() ? static_cast<float>(distortion_weight) : 0.f,
                                          t.defined() ? static_cast<float>(near_scale) : 0.f};
    C10_CUDA_CHECK(launch_composite_loss(problem, delta.mutable_data_ptr<float>(),
                                         want_weights ? weights.mutable_data_ptr<float>() : nullptr, numbers.mutable_data_ptr<float>(),
                                         c10::cuda::getCurrentCUDAStream()));
  };
  if (raw.scalar_type() == at::kHalf) run(static_cast<__half*>(nullptr));
  else run(static_cast<float*>(nullptr));
  return {delta, numbers, weights};
}

}  // namespace

TORCH_LIBRARY_IMPL(raymarching, CUDA, m) { m.impl("composite_loss", composite_loss); }

}  // namespace raymarching
