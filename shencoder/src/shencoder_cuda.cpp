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
        using Value = std::remove_pointer_t<decltype(type)>;
        for_degree(degree, [&](auto d) {
            C10_CUDA_CHECK((launch_forward<d(), Value>(rows.const_data_ptr<float>(), rows.size(0),
                                                       static_cast<Value*>(output.mutable_data_ptr()), c10::cuda::getCurrentCUDAStream())));
        });
    });
    return output;
}

at::Tensor sh_encode_backward(const at::Tensor& grad, const at::Tensor& directions, int64_t degree) {
    check_grad(grad, directions, degree);
    const c10::cuda::CUDAGuard guard(directions.device());
    const at::Tensor rows = directions.contiguous();
    at::Tensor slopes = grad.contiguous();
    if (reinterpret_cast<uintptr_t>(slopes.const_data_ptr()) % 16 != 0) slopes = slopes.clone();  // the kernel reads vectors of 16 bytes
    at::Tensor gradient = at::empty({rows.size(0), 3}, rows.options());
    for_dtype(slopes.scalar_type(), [&](auto* type) {
        using Value = std::remove_pointer_t<decltype(type)>;
        for_degree(degree, [&](auto d) {
            C10_CUDA_CHECK(
                (launch_backward<d(), Value>(static_cast<const Value*>(slopes.const_data_ptr()), rows.const_data_ptr<float>(), rows.size(0),
                                             gradient.mutable_data_ptr<float>(), c10::cuda::getCurrentCUDAStream())));
        });
    });
    return gradient;
}

}  // namespace

TORCH_LIBRARY_IMPL(shencoder, CUDA, library) {
    library.impl("sh_encode_forward", sh_encode_forward);
    library.impl("sh_encode_backward", sh_encode_backward);
}

}  // namespace shencoder
