// The CUDA form of the operators but for MeRF's: checks, results, pointers, the current stream; the kernels are in *_kernels.cu.
#include "fusedfield_cuda.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "fusedfield_checks.h"
#include "tensors.h"

namespace fusedfield {
namespace {

constexpr int64_t raw_columns = 4, view_columns = 16, ngp_columns = 32, proposal_columns = 16;

Encoding encoding_of(const Tensor& encoding) { return {halves(encoding), static_cast<int>(encoding.size(1))}; }

NGPWeights ngp_weights(at::TensorList weights, const Tensor& like, double start = 0) {
    check_weights(weights, like, {{64, 32}, {64, 64}, {16, 64}, {32, 31}, {32, 32}, {3, 32}});
    NGPWeights result;
    for (int i = 0; i < 3; ++i) {
        result.geometry[i] = weights[i].const_data_ptr<float>();
        result.colour[i] = weights[i + 3].const_data_ptr<float>();
    }
    result.start = static_cast<float>(start);
    return result;
}

ProposalWeights proposal_weights(at::TensorList weights, const Tensor& like, int64_t inputs) {
    TORCH_CHECK_VALUE(inputs >= 2 && inputs <= proposal_columns && inputs % 2 == 0, "encoding must have 2, 4 ... ", proposal_columns, " columns, not ", inputs);
    check_weights(weights, like, {{16, inputs}, {1, 16}});
    return {{weights[0].const_data_ptr<float>(), weights[1].const_data_ptr<float>()}, static_cast<int>(inputs)};
}

// Calls work(Positions of the table's type); positions may be null.
template <typename Work>
void with_positions(const float* at, const Tensor& table, const Tensor& offsets, const Tensor& resolutions, double bound, const Work& work) {
    const gridencoder::Grid grid{offsets.const_data_ptr<int32_t>(), resolutions.const_data_ptr<int32_t>(), table.size(0),
                                 static_cast<int>(resolutions.size(0)), gridencoder::Options{}};
    const float side = static_cast<float>(bound);
    if (table.scalar_type() == at::kHalf) C10_CUDA_CHECK(work(Positions<__half>{at, halves(table), grid, side}));
    else C10_CUDA_CHECK(work(Positions<float>{at, table.const_data_ptr<float>(), grid, side}));
}

Tensor ngp(const Tensor& encoding_, const Tensor& directions_, at::TensorList weights_, const Count& count, double start) {
    check_encoding(encoding_, ngp_columns);
    check("directions", directions_, encoding_, at::kFloat, {encoding_.size(0), 3});
    check_count(count, encoding_);
    const c10::cuda::CUDAGuard guard(encoding_.device());
    const NGPWeights weights = ngp_weights(weights_, encoding_, start);
    const Tensor encoding = encoding_.contiguous(), directions = directions_.contiguous(), raw = at::empty({encoding.size(0), raw_columns}, encoding.options());
    C10_CUDA_CHECK(launch_ngp(encoding_of(encoding), directions.const_data_ptr<float>(), weights, batch_of(encoding, count), halves_to(raw),
                              c10::cuda::getCurrentCUDAStream()));
    return raw;
}

Tensor ngp_at(const Tensor& positions_, const Tensor& directions_, const Tensor& table, const Tensor& offsets, const Tensor& resolutions, double bound,
              at::TensorList weights_, const Count& count, double start) {
    check_positions("positions", positions_);
    check_grid(positions_, table, offsets, resolutions, bound, ngp_columns / 2);
    check("directions", directions_, positions_, at::kFloat, {positions_.size(0), 3});
    check_count(count, positions_);
    const c10::cuda::CUDAGuard guard(positions_.device());
    const NGPWeights weights = ngp_weights(weights_, positions_, start);
    const Tensor positions = positions_.contiguous(), directions = directions_.contiguous(),
                 raw = at::empty({positions.size(0), raw_columns}, positions.options().dtype(at::kHalf));
    with_positions(positions.const_data_ptr<float>(), table, offsets, resolutions, bound, [&](const auto& given) {
        return launch_ngp(given, directions.const_data_ptr<float>(), weights, batch_of(positions, count), halves_to(raw), c10::cuda::getCurrentCUDAStream());
    });
    return raw;
}

Tensor ngp_density_at(const Tensor& positions_, const Tensor& table, const Tensor& offsets, const Tensor& resolutions, double bound,
                      at::TensorList weights_, const Count& count, double start) {
    check_positions("positions", positions_);
    check_grid(positions_, table, offsets, resolutions, bound, ngp_columns / 2);
    check_count(count, positions_);
    const c10::cuda::CUDAGuard guard(positions_.device());
    const NGPWeights weights = ngp_weights(weights_, positions_, start);
    const Tensor positions = positions_.contiguous(), logit = at::empty({positions.size(0)}, positions.options().dtype(at::kHalf));
    with_positions(positions.const_data_ptr<float>(), table, offsets, resolutions, bound, [&](const auto& given) {
        return launch_ngp_density(given, weights, batch_of(positions, count), halves_to(logit), c10::cuda::getCurrentCUDAStream());
    });
    return logit;
}

std::tuple<Tensor, Tensor, Tensor> ngp_render(const Tensor& origins_, const Tensor& directions_, const Tensor& near_, const Tensor& far_,
                                              const Tensor& bitfield_, const Tensor& table, const Tensor& offsets, const Tensor& resolutions,
                                              double bound, at::TensorList weights_, double start, double march_bound, int64_t cascades,
                                              int64_t grid_size, bool contract, double dt_gamma, int64_t max_steps, double T_thresh) {
    check_positions("origins", origins_);
    const int64_t rays = origins_.size(0);
    TORCH_CHECK_VALUE(rays <= most_rows / 2, "origins must have at most 2^29 rows, not ", rays);
    check("directions", directions_, origins_, at::kFloat, {rays, 3});
    check("near", near_, origins_, at::kFloat, {rays});
    check("far", far_, origins_, at::kFloat, {rays});
    check("bitfield", bitfield_, origins_, at::kByte, {-1});
    check_grid(origins_, table, offsets, resolutions, bound, ngp_columns / 2);
    const c10::cuda::CUDAGuard guard(origins_.device());
    const NGPWeights weights = ngp_weights(weights_, origins_, start);
    const Tensor origins = origins_.contiguous(), directions = directions_.contiguous(), near = near_.contiguous(), far = far_.contiguous(),
                 bitfield = bitfield_.contiguous(), features = at::empty({rays, 3}, origins.options()), opacity = at::empty({rays}, origins.options()),
                 depth = at::empty({rays}, origins.options()), next = at::zeros({1}, origins.options().dtype(at::kInt));
    const raymarching::March march = raymarching::make_march(march_bound, cascades, grid_size, contract, dt_gamma, max_steps);
    const Picture picture{origins.const_data_ptr<float>(), directions.const_data_ptr<float>(), near.const_data_ptr<float>(), far.const_data_ptr<float>(),
                          bitfield.const_data_ptr<uint8_t>(), static_cast<float>(T_thresh), static_cast<int>(rays), features.mutable_data_ptr<float>(),
                          opacity.mutable_data_ptr<float>(), depth.mutable_data_ptr<float>()};
    with_positions(nullptr, table, offsets, resolutions, bound, [&](const auto& given) {
        return launch_ngp_render(given, weights, march, picture, next.mutable_data_ptr<int32_t>(), c10::cuda::getCurrentCUDAStream());
    });
    return {features, opacity, depth};
}

std::tuple<Tensor, Tensor, Tensor> ngp_backward(const Tensor& encoding_, const Tensor& directions_, at::TensorList weights_, const Count& count,
                                                const Tensor& gradient_, const std::optional<Tensor>& scale, bool view) {
    check_encoding(encoding_, ngp_columns);
    check("directions", directions_, encoding_, at::kFloat, {encoding_.size(0), 3});
    check_count(count, encoding_);
    check_upstream(gradient_, scale, encoding_, {encoding_.size(0), raw_columns});
    const c10::cuda::CUDAGuard guard(encoding_.device());
    const NGPWeights weights = ngp_weights(weights_, encoding_);
    const Tensor encoding = encoding_.contiguous(), directions = directions_.contiguous(), gradient = gradient_.contiguous(),
                 of_encoding = at::empty(encoding.sizes(), encoding.options()), of_weights = at::zeros({numbers(weights_)}, gradient.options()),
                 of_view = at::empty({view ? encoding.size(0) : 0, view_columns}, encoding.options());
    const Upstream upstream{gradient.const_data_ptr<float>(), scale ? scale->const_data_ptr<float>() : nullptr};
    C10_CUDA_CHECK(launch_ngp_backward(encoding_of(encoding), directions.const_data_ptr<float>(), weights, batch_of(encoding, count), upstream,
                                       halves_to(of_encoding), view ? halves_to(of_view) : nullptr, of_weights.mutable_data_ptr<float>(),
                                       c10::cuda::getCurrentCUDAStream()));
    return {of_encoding, of_weights, of_view};
}

Tensor proposal(const Tensor& encoding_, at::TensorList weights_, const Count& count) {
    check_encoding(encoding_, -1);
    check_count(count, encoding_);
    const c10::cuda::CUDAGuard guard(encoding_.device());
    const ProposalWeights weights = proposal_weights(weights_, encoding_, encoding_.size(1));
    const Tensor encoding = encoding_.contiguous(), logit = at::empty({encoding.size(0)}, encoding.options());
    C10_CUDA_CHECK(launch_proposal(encoding_of(encoding), weights, batch_of(encoding, count), halves_to(logit), c10::cuda::getCurrentCUDAStream()));
    return logit;
}

Tensor proposal_at(const Tensor& positions_, const Tensor& table, const Tensor& offsets, const Tensor& resolutions, double bound, at::TensorList weights_,
                   const Count& count) {
    check_positions("positions", positions_);
    check_grid(positions_, table, offsets, resolutions, bound, proposal_columns / 2);
    check_count(count, positions_);
    const c10::cuda::CUDAGuard guard(positions_.device());
    const ProposalWeights weights = proposal_weights(weights_, positions_, 2 * resolutions.size(0));
    const Tensor positions = positions_.contiguous(), logit = at::empty({positions.size(0)}, positions.options().dtype(at::kHalf));
    with_positions(positions.const_data_ptr<float>(), table, offsets, resolutions, bound, [&](const auto& given) {
        return launch_proposal(given, weights, batch_of(positions, count), halves_to(logit), c10::cuda::getCurrentCUDAStream());
    });
    return logit;
}

std::tuple<Tensor, Tensor> proposal_backward(const Tensor& encoding_, at::TensorList weights_, const Count& count, const Tensor& gradient_,
                                             const std::optional<Tensor>& scale) {
    check_encoding(encoding_, -1);
    check_count(count, encoding_);
    check_upstream(gradient_, scale, encoding_, {encoding_.size(0)});
    const c10::cuda::CUDAGuard guard(encoding_.device());
    const ProposalWeights weights = proposal_weights(weights_, encoding_, encoding_.size(1));
    const Tensor encoding = encoding_.contiguous(), gradient = gradient_.contiguous(), of_encoding = at::empty(encoding.sizes(), encoding.options()),
                 of_weights = at::zeros({numbers(weights_)}, gradient.options());
    const Upstream upstream{gradient.const_data_ptr<float>(), scale ? scale->const_data_ptr<float>() : nullptr};
    C10_CUDA_CHECK(launch_proposal_backward(encoding_of(encoding), weights, batch_of(encoding, count), upstream, halves_to(of_encoding),
                                            of_weights.mutable_data_ptr<float>(), c10::cuda::getCurrentCUDAStream()));
    return {of_encoding, of_weights};
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedfield, CUDA, library) {
    library.impl("ngp", ngp);
    library.impl("ngp_at", ngp_at);
    library.impl("ngp_density_at", ngp_density_at);
    library.impl("ngp_backward", ngp_backward);
    library.impl("ngp_render", ngp_render);
    library.impl("proposal", proposal);
    library.impl("proposal_at", proposal_at);
    library.impl("proposal_backward", proposal_backward);
}

}  // namespace fusedfield
