// The loss of composited pixels and its gradient: registration and CPU form. One task is a number of rays; its sums are added up in order,
// so that results repeat bit for bit, whatever the number of threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "loss_math.h"

namespace raymarching {
namespace {

using at::Tensor;

constexpr int64_t RAYS_A_TASK = 128;

template <class Raw, class Real>
void composite_loss_loop(const LossProblem<Raw, Real>& problem, Real* delta, Real* weights, Real* numbers) {
  struct Sums {
    double loss, squared_error;
  };
  const int64_t kept = problem.kept(), tasks = (kept + RAYS_A_TASK - 1) / RAYS_A_TASK;
  std::vector<Sums> sums(tasks);
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task)
      for (int64_t ray = task * RAYS_A_TASK; ray < std::min((task + 1) * RAYS_A_TASK, kept); ++ray) {
        const PixelLoss<Real> pixel = composite_loss_ray(problem, ray, delta, weights);
        sums[task].loss += pixel.loss, sums[task].squared_error += pixel.squared_error;
      }
  });
  Sums total{0, 0};
  for (const Sums& task : sums) total.loss += task.loss, total.squared_error += task.squared_error;
  numbers[0] = static_cast<Real>(total.loss), numbers[1] = static_cast<Real>(total.squared_error);
}

std::tuple<Tensor, Tensor, Tensor> composite_loss(const Tensor& raw_, const Tensor& dt_, const Tensor& rays_, const Tensor& counts_,
                                                  const Tensor& target_, const Tensor& background_, double T_thresh, double entropy_weight,
                                                  const std::optional<Tensor>& spacing_, double distortion_weight,
                                                  const std::optional<Tensor>& t_, double near_scale, bool want_weights) {
  const Tensor raw = raw_.contiguous(), dt = dt_.contiguous(), rays = rays_.contiguous(), counts = counts_.contiguous(),
               target = target_.contiguous(), background = background_.contiguous(),
               spacing = spacing_ ? spacing_->contiguous() : Tensor(), t = t_ ? t_->contiguous() : Tensor();
  Tensor delta = at::zeros(raw.sizes(), dt.options()), numbers = at::empty({2}, dt.options()),
         weights = at::zeros({want_weights ? raw.size(0) : 0}, dt.options());
  const auto run = [&](auto* logits, auto* lengths) {
    using Raw = std::remove_pointer_t<decltype(logits)>;
    using Real = std::remove_pointer_t<decltype(lengths)>;
    const LossProblem<Raw, Real> problem{raw.const_data_ptr<Raw>(),
                                         dt.const_data_ptr<Real>(),
                                         rays.const_data_ptr<int32_t>(),
                                         counts.const_data_ptr<int32_t>(),
                                         target.const_data_ptr<Real>(),
                                         background.const_data_ptr<Real>(),
                                         rays.size(0),
                                         raw.size(0),
                                         static_cast<int>(target.size(1)),
                                         static_cast<Real>(T_thresh),
                                         static_cast<Real>(entropy_weight),
                                         spacing.defined() ? spacing.const_data_ptr<Real>() : nullptr,
                                         t.defined() ? t.const_data_ptr<Real>() : nullptr,
                                         spacing.defined() ? static_cast<Real>(distortion_weight) : Real(0),
                                         t.defined() ? static_cast<Real>(near_scale) : Real(0)};
    composite_loss_loop(problem, delta.mutable_data_ptr<Real>(), want_weights ? weights.mutable_data_ptr<Real>() : nullptr,
                        numbers.mutable_data_ptr<Real>());
  };
  if (raw.scalar_type() == at::kDouble) run(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
  else if (raw.scalar_type() == at::kHalf) run(static_cast<at::Half*>(nullptr), static_cast<float*>(nullptr));
  else run(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
  return {delta, numbers, weights};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(raymarching, m) {
  m.def(
      "composite_loss(Tensor raw, Tensor dt, Tensor rays, Tensor counts, Tensor target, Tensor background, float T_thresh, "
      "float entropy_weight, Tensor? spacing, float distortion_weight, Tensor? t, float near_scale, bool want_weights) "
      "-> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(raymarching, CPU, m) { m.impl("composite_loss", composite_loss); }

}  // namespace raymarching
