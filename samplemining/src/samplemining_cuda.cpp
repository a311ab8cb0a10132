// The CUDA form of the operators: checks, results, pointers, the current stream; the kernels are in *_kernels.cu.
#include "samplemining_cuda.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <string_view>
#include <tuple>
#include <vector>

#include "samplemining_checks.h"

namespace samplemining {
namespace {

// Contiguous and on a boundary of `bytes`, copied where it is not.
at::Tensor aligned(const at::Tensor& tensor, uintptr_t bytes) {
    const at::Tensor packed = tensor.contiguous();
    return reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % bytes == 0 ? packed : packed.clone();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> thin_samples(const at::Tensor& delta_, const at::Tensor& noise_, const at::Tensor& count,
                                                            at::Tensor tau, int64_t room, std::string_view budget, double fraction,
                                                            double floor, double cap, double momentum, std::string_view law, double alpha) {
    check_thin(delta_, noise_, count, tau);
    const Rule rule = rule_of(room, budget, fraction, floor, cap, momentum, law, alpha);
    const c10::cuda::CUDAGuard guard(delta_.device());
    const at::Tensor delta = aligned(delta_, delta_.size(1) == 4 ? 16 : 4), noise = noise_.contiguous();
    const int64_t rows = delta.size(0), columns = delta.size(1), blocks = blocks_of(rows);
    const auto whole = delta.options().dtype(at::kInt);

    at::Tensor histogram = at::empty({bins}, delta.options().dtype(at::kLong)), scores = at::empty({rows}, delta.options());
    at::Tensor keep = at::empty({blocks * block_words}, whole), kept = at::empty({blocks}, whole), draw = at::empty({2}, delta.options());
    const Scratch scratch{static_cast<unsigned long long*>(histogram.mutable_data_ptr()), scores.mutable_data_ptr<float>(),
                          static_cast<uint32_t*>(keep.mutable_data_ptr()), kept.mutable_data_ptr<int32_t>(),
                          static_cast<Draw*>(draw.mutable_data_ptr())};
    static_assert(sizeof(Draw) == 2 * sizeof(float));

    at::Tensor index = at::empty({room}, delta.options().dtype(at::kLong)), gradient = at::empty({room, columns}, delta.options());
    at::Tensor counts = at::empty({2}, whole);
    const Chosen chosen{index.mutable_data_ptr<int64_t>(), gradient.mutable_data_ptr<float>(), counts.mutable_data_ptr<int32_t>()};
    const Rows given{delta.const_data_ptr<float>(), noise.const_data_ptr<float>(), count.const_data_ptr<int32_t>(), rows,
                     static_cast<int>(columns)};
    C10_CUDA_CHECK(launch_thin(given, rule, tau.mutable_data_ptr<float>(), scratch, chosen, c10::cuda::getCurrentCUDAStream()));
    return {index, gradient, counts};
}

std::vector<at::Tensor> take_rows(at::TensorList tensors, const at::Tensor& index_) {
    check_take(tensors, index_);
    const c10::cuda::CUDAGuard guard(index_.device());
    const at::Tensor index = index_.contiguous();
    std::vector<at::Tensor> sources, taken;  // the sources stay until the kernel is launched; their memory is used in stream order
    Gathers gathers{};
    for (const at::Tensor& tensor : tensors) {
        const int64_t bytes = row_bytes(tensor);
        sources.push_back(aligned(tensor, 4));
        taken.push_back(at::empty(taken_sizes(tensor, index.size(0)), tensor.options()));
        if (bytes == 0) continue;
        gathers.each[gathers.count++] = {sources.back().const_data_ptr(), taken.back().mutable_data_ptr(), static_cast<int>(bytes)};
    }
    if (gathers.count == 0) return taken;
    C10_CUDA_CHECK(launch_take(gathers, index.const_data_ptr<int64_t>(), index.size(0), tensors[0].size(0),
                               c10::cuda::getCurrentCUDAStream()));
    return taken;
}

}  // namespace

TORCH_LIBRARY_IMPL(samplemining, CUDA, library) {
    library.impl("thin_samples", thin_samples);
    library.impl("take_rows", take_rows);
}

}  // namespace samplemining
