// The CUDA form of the operators: checks, results, pointers, the current stream; the kernels are in freqencoder_cuda.cu.
#include "freqencoder_cuda.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <type_traits>

#include "freqencoder_checks.h"

namespace freqencoder {
namespace {

// Calls work with a null pointer of the kernels' type for `dtype`.
template <typename Work>
void for_dtype(at::ScalarType dtype, const Work& work) {
    if (dtype == at::kHalf) work(static_cast<__half*>(nullptr));
    else work(static_cast<float*>(nullptr));
}

Layout layout_of(const at::Tensor& positions, int64_t degree, bool include_input) {
    return {static_cast<int>(positions.size(1)), static_cast<int>(degree), include_input};
}

at::Tensor freq_encode_forward(const at::Tensor& positions, int64_t degree, bool include_input, at::ScalarType dtype) {
    check_positions(positions, degree);
    check_dtype("dtype", dtype, positions);
    const c10::cuda::CUDAGuard guard(positions.device());
    const at::Tensor rows = positions.contiguous();
    at::Tensor output = at::empty({rows.size(0), columns_of(rows, degree, include_input)}, rows.options().dtype(dtype));
    for_dtype(dtype, [&](auto* type) {
        auto* columns = static_cast<decltype(type)>(output.mutable_data_ptr());
        C10_CUDA_CHECK(launch_forward(rows.const_data_ptr<float>(), rows.size(0), layout_of(rows, degree, include_input), columns,
                                      c10::cuda::getCurrentCUDAStream()));
    });
    return output;
}

at::Tensor freq_encode_backward(const at::Tensor& grad, const at::Tensor& positions, int64_t degree, bool include_input) {
    check_grad(grad, positions, degree, include_input);
    const c10::cuda::CUDAGuard guard(positions.device());
    const at::Tensor rows = positions.contiguous();
    at::Tensor slopes = grad.contiguous();
    if (reinterpret_cast<uintptr_t>(slopes.const_data_ptr()) % 4 != 0) slopes = slopes.clone();  // the kernel reads pairs of halves
    at::Tensor gradient = at::empty(rows.sizes(), rows.options());
    for_dtype(slopes.scalar_type(), [&](auto* type) {
        const auto* columns = static_cast<const std::remove_pointer_t<decltype(type)>*>(slopes.const_data_ptr());
        C10_CUDA_CHECK(launch_backward(columns, rows.const_data_ptr<float>(), rows.size(0), layout_of(rows, degree, include_input),
                                       gradient.mutable_data_ptr<float>(), c10::cuda::getCurrentCUDAStream()));
    });
    return gradient;
}

}  // namespace

TORCH_LIBRARY_IMPL(freqencoder, CUDA, library) {
    library.impl("freq_encode_forward", freq_encode_forward);
    library.impl("freq_encode_backward", freq_encode_backward);
}

}  // namespace freqencoder
