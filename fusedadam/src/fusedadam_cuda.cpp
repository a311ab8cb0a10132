// The CUDA form of the operator: checks, pointers, the current stream; the kernels are in fusedadam_cuda.cu.
#include "fusedadam_cuda.h"

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "fusedadam_leaves.h"

namespace fusedadam {
namespace {

void step_(at::TensorList parameters, at::TensorList gradients, at::TensorList first_moments, at::TensorList second_moments,
           at::TensorList copies, at::TensorList rates, c10::List<bool> sparse, const at::Tensor& control, double beta1, double beta2,
           double eps, std::optional<int64_t> growth_interval) {
    const Lists lists{parameters, gradients, first_moments, second_moments, copies, rates, sparse};
    const Settings settings = checked_settings(beta1, beta2, eps, growth_interval, control);
    check_lists(lists, control.device());
    const c10::cuda::CUDAGuard guard(control.device());
    std::vector<at::Tensor> kept;
    const auto leaves = leaves_of<__half>(lists, kept);
    C10_CUDA_CHECK(launch_step(leaves.data(), static_cast<int>(leaves.size()), control_of(control), settings,
                               c10::cuda::getCurrentCUDAStream()));
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedadam, CUDA, library) { library.impl("step_", step_); }

}  // namespace fusedadam
