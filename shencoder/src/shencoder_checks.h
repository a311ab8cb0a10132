// What the operators demand of their arguments, the same for CPU and CUDA; anything else is a Python error that names the argument.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "shencoder_math.h"

namespace shencoder {

inline void check_directions(const at::Tensor& directions, int64_t degree) {
    TORCH_CHECK_VALUE(directions.dim() == 2 && directions.size(1) == 3, "directions must be of shape [M, 3], not ", directions.sizes());
    const bool known = directions.scalar_type() == at::kFloat || (directions.scalar_type() == at::kDouble && directions.is_cpu());
    TORCH_CHECK_TYPE(known, "directions must be float32 or, on the CPU, float64, not ", directions.scalar_type(), " on ",
                     directions.device());
    TORCH_CHECK_VALUE(degree >= 1 && degree <= max_degree, "degree must be 1 to ", max_degree, ", not ", degree);
}

// Results and their gradients are like the directions, or half where the directions are float32.
inline void check_dtype(const char* name, at::ScalarType dtype, const at::Tensor& directions) {
    const bool half = dtype == at::kHalf && directions.scalar_type() == at::kFloat;
    TORCH_CHECK_TYPE(half || dtype == directions.scalar_type(), name, " must be ", directions.scalar_type(),
                     " or, for float32 directions, float16, not ", dtype);
}

inline void check_grad(const at::Tensor& grad, const at::Tensor& directions, int64_t degree) {
    check_directions(directions, degree);
    check_dtype("grad", grad.scalar_type(), directions);
    TORCH_CHECK_VALUE(grad.dim() == 2 && grad.size(0) == directions.size(0) && grad.size(1) == degree * degree, "grad must be of shape [",
                      directions.size(0), ", ", degree * degree, "], not ", grad.sizes());
    TORCH_CHECK_VALUE(grad.device() == directions.device(), "grad is on ", grad.device(), " but the directions are on ",
                      directions.device());
}

}  // namespace shencoder
