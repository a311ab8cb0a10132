// The CUDA form of the operators: checks, results, pointers, the current stream; the kernels are in raysampling_kernels.cu.
#include "raysampling_cuda.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <type_traits>

#include "raysampling_checks.h"

namespace raysampling {
namespace {

using at::Tensor;

// Calls work with a null pointer of the kernels' type for the logits.
template <typename Work>
void for_dtype(const Tensor& logit, const Work& work) {
    if (logit.scalar_type() == at::kHalf) work(static_cast<__half*>(nullptr));
    else work(static_cast<float*>(nullptr));
}

Rays<float> rays_of(const Tensor& near, const Tensor& far, const Tensor& count) {
    return {near.const_data_ptr<float>(), far.const_data_ptr<float>(), count.const_data_ptr<int32_t>(), near.size(0)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> place_samples(const Tensor& edges_, const Tensor& origins_, const Tensor& directions_,
                                                                 const Tensor& near_, const Tensor& far_, const Tensor& count,
                                                                 bool contract, bool last_open) {
    check_placing(edges_, origins_, directions_, near_, far_, count);
    const c10::cuda::CUDAGuard guard(edges_.device());
    const Tensor edges = edges_.contiguous(), origins = origins_.contiguous(), directions = directions_.contiguous(),
                 near = near_.contiguous(), far = far_.contiguous();
    const int64_t rays = edges.size(0), intervals = edges.size(1) - 1;
    const Tensor positions = at::empty({rays * intervals, 3}, edges.options()), ahead = at::empty({rays * intervals, 3}, edges.options()),
                 t = at::empty({rays * intervals}, edges.options()), dt = at::empty({rays * intervals}, edges.options()),
                 ray_index = at::empty({rays * intervals}, edges.options().dtype(at::kInt));
    const Placing<float> placing{rays_of(near, far, count),
                                 edges.const_data_ptr<float>(),
                                 origins.const_data_ptr<float>(),
                                 directions.const_data_ptr<float>(),
                                 static_cast<int>(intervals),
                                 contract,
                                 last_open};
    const Placed placed{positions.mutable_data_ptr<float>(), ahead.mutable_data_ptr<float>(), t.mutable_data_ptr<float>(),
                        dt.mutable_data_ptr<float>(), ray_index.mutable_data_ptr<int32_t>()};
    C10_CUDA_CHECK(launch_place(placing, placed, c10::cuda::getCurrentCUDAStream()));
    return {positions, ahead, t, dt, ray_index};
}

std::tuple<Tensor, Tensor> resample(const Tensor& edges_, const Tensor& logit_, const Tensor& near_, const Tensor& far_,
                                    const Tensor& count, const Tensor& noise_, int64_t intervals, double padding,
                                    const std::optional<Tensor>& anneal) {
    check_resampling(edges_, logit_, near_, far_, count, noise_, intervals, padding, anneal);
    const c10::cuda::CUDAGuard guard(edges_.device());
    const Tensor edges = edges_.contiguous(), logit = logit_.contiguous(), near = near_.contiguous(), far = far_.contiguous(),
                 noise = noise_.contiguous();
    const int64_t rays = edges.size(0), given = edges.size(1) - 1;
    const Tensor new_edges = at::empty({rays, intervals + 1}, edges.options()), weights = at::empty({rays, given}, edges.options());
    for_dtype(logit, [&](auto* logits) {
        using Logit = std::remove_pointer_t<decltype(logits)>;
        const Resampling<Logit, float> resampling{rays_of(near, far, count),
                                                  edges.const_data_ptr<float>(),
                                                  static_cast<const Logit*>(logit.const_data_ptr()),
                                                  noise.const_data_ptr<float>(),
                                                  anneal ? anneal->const_data_ptr<float>() : nullptr,
                                                  static_cast<int>(given),
                                                  static_cast<int>(intervals),
                                                  noise.dim() == 2,
                                                  static_cast<float>(padding)};
        C10_CUDA_CHECK(launch_resample(resampling, new_edges.mutable_data_ptr<float>(), weights.mutable_data_ptr<float>(),
                                       c10::cuda::getCurrentCUDAStream()));
    });
    return {new_edges, weights};
}

std::tuple<Tensor, Tensor> interlevel_loss(const Tensor& edges_ref_, const Tensor& weights_ref_, const Tensor& edges_,
                                           const Tensor& logit_, const Tensor& near_, const Tensor& far_, const Tensor& count) {
    check_interlevel(edges_ref_, weights_ref_, edges_, logit_, near_, far_, count);
    const c10::cuda::CUDAGuard guard(edges_.device());
    const Tensor edges_ref = edges_ref_.contiguous(), weights_ref = weights_ref_.contiguous(), edges = edges_.contiguous(),
                 logit = logit_.contiguous(), near = near_.contiguous(), far = far_.contiguous();
    const Tensor gradient = at::empty(logit.sizes(), edges.options()), loss = at::empty({1}, edges.options());
    for_dtype(logit, [&](auto* logits) {
        using Logit = std::remove_pointer_t<decltype(logits)>;
        const Interlevel<Logit, float> interlevel{rays_of(near, far, count),
                                                  edges_ref.const_data_ptr<float>(),
                                                  weights_ref.const_data_ptr<float>(),
                                                  edges.const_data_ptr<float>(),
                                                  static_cast<const Logit*>(logit.const_data_ptr()),
                                                  static_cast<int>(edges_ref.size(1) - 1),
                                                  static_cast<int>(edges.size(1) - 1)};
        C10_CUDA_CHECK(launch_interlevel(interlevel, gradient.mutable_data_ptr<float>(), loss.mutable_data_ptr<float>(),
                                         c10::cuda::getCurrentCUDAStream()));
    });
    return {gradient, loss};
}

}  // namespace

TORCH_LIBRARY_IMPL(raysampling, CUDA, library) {
    library.impl("place_samples", place_samples);
    library.impl("resample", resample);
    library.impl("interlevel_loss", interlevel_loss);
}

}  // namespace raysampling
