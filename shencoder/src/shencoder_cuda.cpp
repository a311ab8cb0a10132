// The CUDA form of the operators: checks, results, pointers, the current stream; the kernels are in shencoder_cuda.cu.
#include "shencoder_cuda.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "shencoder_checks.h"

namespace shencoder {
namespace {

// Calls work with a null pointer of the kernels' type for `dtype`.
template <typename Work>
void for_dtype(at::ScalarType dtype, const Work& work) {
    if (dtype == at::kHalf) work(static_cast<__half*>(nullptr));
    else work(static_cast<float*>(nullptr));
}

at::Tensor sh_encode_forward(const at::Tensor& directions, int64_t degree, at::ScalarType dtype) {
    check_directions(directions, degree);
    check_dtype("dtype", dtype, directions);
    const c10::cuda::CUDAGuard guard(directions.device());
    const at::Tensor rows = directions.contiguous();
    at::Tensor output = at::empty({rows.size(0), degree * degree}, rows.options().dtype(dtype));
    for_dtype(dtype, [&](auto* type) {
        auto* columns = static_cast<decltype(type)>(output.mutable_data_ptr());
        C10_CUDA_CHECK(launch_forward(rows.const_data_ptr<float>(), rows.size(0), degree, columns, c10::cuda::getCurrentCUDAStream()));
    });
    return output;
}

at::Tensor sh_encode_backward(const at::Tensor& grad, const at::Tensor& directions, int64_t degree) {
    check_grad(grad, directions, degree);
    const c10::cuda::CUDAGuard guard(directions.device());
    const at::Tensor rows = directions.contiguous();
    at::Tensor slopes = grad.contiguous();
    if (reinterpret_cast<uintptr_t>(slopes.const_data_ptr()) % 4 != 0) slopes = slopes.clone();  // the kernel reads pairs of halves
    at::Tensor gradient = at::empty({rows.size(0), 3}, rows.options());
    for_dtype(slopes.scalar_type(), [&](auto* type) {
        const auto* columns = static_cast<const std::remove_pointer_t<decltype(type)>*>(slopes.const_data_ptr());
        C10_CUDA_CHECK(launch_backward(columns, rows.const_data_ptr<float>(), rows.size(0), degree, gradient.mutable_data_ptr<float>(),
                                       c10::cuda::getCurrentCUDAStream()));
    });
    return gradient;
}

}  // namespace

TORCH_LIBRARY_IMPL(shencoder, CUDA, library) {
    library.impl("sh_encode_forward", sh_encode_forward);
    library.impl("sh_encode_backward", sh_encode_backward);
}

}  // namespace shencoder
