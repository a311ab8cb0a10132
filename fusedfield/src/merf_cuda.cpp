// The CUDA form of MeRF's operators: checks, results, pointers, the current stream; the kernels are in merf_kernels.cu.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "fusedfield_checks.h"
#include "tensors.h"

namespace fusedfield {
namespace {

constexpr int64_t raw_columns = 8, columns = 32, most_levels = 8, features = 4;

MerfWeights merf_weights(at::TensorList weights, const Tensor& like, double density_limit, double feature_limit) {
    check_weights(weights, like, {{64, columns}, {raw_columns, 64}});
    TORCH_CHECK_VALUE(density_limit > 0 && feature_limit > 0, "density_limit and feature_limit must be positive, not ", density_limit, " and ", feature_limit);
    return {weights[0].const_data_ptr<float>(), weights[1].const_data_ptr<float>(), static_cast<float>(density_limit), static_cast<float>(feature_limit)};
}

// Contiguous, as long as they live, and checked.
std::vector<Tensor> merf_encodings(at::TensorList encodings) {
    check_four("encodings", encodings);
    std::vector<Tensor> result;
    for (const Tensor& encoding : encodings) {
        check_encoding(encoding, columns);
        check("encodings", encoding, encodings[0], at::kHalf, {encodings[0].size(0), columns});
        result.push_back(encoding.contiguous());
    }
    return result;
}

MerfEncodings pointers_of(const std::vector<Tensor>& encodings) {
    MerfEncodings result;
    for (int g = 0; g < MERF_GRIDS; ++g) result.features[g] = halves(encodings[g]);
    return result;
}

Tensor merf(at::TensorList encodings_, at::TensorList weights_, double density_limit, double feature_limit, const Count& count) {
    check_four("encodings", encodings_);
    const c10::cuda::CUDAGuard guard(encodings_[0].device());
    const std::vector<Tensor> encodings = merf_encodings(encodings_);
    const Tensor& first = encodings[0];
    check_count(count, first);
    const MerfWeights weights = merf_weights(weights_, first, density_limit, feature_limit);
    const Tensor raw = at::empty({first.size(0), raw_columns}, first.options());
    C10_CUDA_CHECK(launch_merf(pointers_of(encodings), weights, batch_of(first, count), halves_to(raw), c10::cuda::getCurrentCUDAStream()));
    return raw;
}

// Calls work(MerfPositions of the tables' type, weights) after the checks.
template <typename Work>
void with_merf(const Tensor& positions, at::TensorList tables, at::TensorList offsets, at::TensorList resolutions, double bound, at::TensorList weights_,
               double density_limit, double feature_limit, const Count& count, const Work& work) {
    check_positions("positions", positions);
    check_four("tables", tables), check_four("offsets", offsets), check_four("resolutions", resolutions);
    check_count(count, positions);
    const MerfWeights weights = merf_weights(weights_, positions, density_limit, feature_limit);
    const auto run = [&](auto value) {
        using Value = decltype(value);
        MerfPositions<Value> given{positions.const_data_ptr<float>(), {}, {}, static_cast<float>(bound)};
        for (int g = 0; g < MERF_GRIDS; ++g) {
            check_grid(positions, tables[g], offsets[g], resolutions[g], bound, most_levels, features);
            TORCH_CHECK_TYPE(tables[g].scalar_type() == tables[0].scalar_type(), "tables must be of one dtype, not of ", tables[0].scalar_type(), " and ", tables[g].scalar_type());
            given.tables[g] = static_cast<const Value*>(tables[g].const_data_ptr());
            given.grids[g] = {offsets[g].const_data_ptr<int32_t>(), resolutions[g].const_data_ptr<int32_t>(), tables[g].size(0),
                              static_cast<int>(resolutions[g].size(0)), gridencoder::Options{}};
        }
        C10_CUDA_CHECK(work(given, weights));
    };
    if (tables[0].scalar_type() == at::kHalf) run(__half{});
    else run(float{});
}

Tensor merf_at(const Tensor& positions_, at::TensorList tables, at::TensorList offsets, at::TensorList resolutions, double bound, at::TensorList weights,
               double density_limit, double feature_limit, const Count& count) {
    const c10::cuda::CUDAGuard guard(positions_.device());
    const Tensor positions = positions_.contiguous();
    Tensor raw;
    with_merf(positions, tables, offsets, resolutions, bound, weights, density_limit, feature_limit, count, [&](const auto& given, const MerfWeights& matrices) {
        raw = at::empty({positions.size(0), raw_columns}, positions.options().dtype(at::kHalf));
        return launch_merf(given, matrices, batch_of(positions, count), halves_to(raw), c10::cuda::getCurrentCUDAStream());
    });
    return raw;
}

Tensor merf_density_at(const Tensor& positions_, at::TensorList tables, at::TensorList offsets, at::TensorList resolutions, double bound,
                       at::TensorList weights, double density_limit, double feature_limit, const Count& count) {
    const c10::cuda::CUDAGuard guard(positions_.device());
    const Tensor positions = positions_.contiguous();
    Tensor logit;
    with_merf(positions, tables, offsets, resolutions, bound, weights, density_limit, feature_limit, count, [&](const auto& given, const MerfWeights& matrices) {
        logit = at::empty({positions.size(0)}, positions.options().dtype(at::kHalf));
        return launch_merf_density(given, matrices, batch_of(positions, count), halves_to(logit), c10::cuda::getCurrentCUDAStream());
    });
    return logit;
}

std::tuple<Tensor, Tensor> merf_backward(at::TensorList encodings_, at::TensorList weights_, double density_limit, double feature_limit,
                                         const Count& count, const Tensor& gradient_, const std::optional<Tensor>& scale) {
    check_four("encodings", encodings_);
    const c10::cuda::CUDAGuard guard(encodings_[0].device());
    const std::vector<Tensor> encodings = merf_encodings(encodings_);
    const Tensor& first = encodings[0];
    check_count(count, first);
    check_upstream(gradient_, scale, first, {first.size(0), raw_columns});
    const MerfWeights weights = merf_weights(weights_, first, density_limit, feature_limit);
    const Tensor gradient = gradient_.contiguous(), of_encoding = at::empty(first.sizes(), first.options()), of_weights = at::zeros({numbers(weights_)}, gradient.options());
    const Upstream upstream{gradient.const_data_ptr<float>(), scale ? scale->const_data_ptr<float>() : nullptr};
    C10_CUDA_CHECK(launch_merf_backward(pointers_of(encodings), weights, batch_of(first, count), upstream, halves_to(of_encoding),
                                        of_weights.mutable_data_ptr<float>(), c10::cuda::getCurrentCUDAStream()));
    return {of_encoding, of_weights};
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedfield, CUDA, library) {
    library.impl("merf", merf);
    library.impl("merf_at", merf_at);
    library.impl("merf_density_at", merf_density_at);
    library.impl("merf_backward", merf_backward);
}

}  // namespace fusedfield
