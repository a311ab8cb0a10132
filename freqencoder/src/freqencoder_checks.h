// What the operators demand of their arguments, the same for CPU and CUDA; anything else is a Python error that names the argument.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "freqencoder_math.h"

namespace freqencoder {

inline void check_positions(const at::Tensor& positions, int64_t degree) {
    const bool shaped = positions.dim() == 2 && positions.size(1) >= 1 && positions.size(1) <= max_dimensions;
    TORCH_CHECK_VALUE(shaped, "positions must be of shape [M, D] with D from 1 to ", max_dimensions, ", not ", positions.sizes());
    const bool known = positions.scalar_type() == at::kFloat || (positions.scalar_type() == at::kDouble && positions.is_cpu());
    TORCH_CHECK_TYPE(known, "positions must be float32 or, on the CPU, float64, not ", positions.scalar_type(), " on ", positions.device());
    TORCH_CHECK_VALUE(degree >= 1 && degree <= max_degree, "degree must be 1 to ", max_degree, ", not ", degree);
}

// Results and their gradients are like the positions, or half where the positions are float32.
inline void check_dtype(const char* name, at::ScalarType dtype, const at::Tensor& positions) {
    const bool half = dtype == at::kHalf && positions.scalar_type() == at::kFloat;
    TORCH_CHECK_TYPE(half || dtype == positions.scalar_type(), name, " must be ", positions.scalar_type(),
                     " or, for float32 positions, float16, not ", dtype);
}

// Of a row of results; the arguments are known to be good.
inline int64_t columns_of(const at::Tensor& positions, int64_t degree, bool include_input) {
    return columns_of_row(static_cast<int>(positions.size(1)), static_cast<int>(degree), include_input);
}

inline void check_grad(const at::Tensor& grad, const at::Tensor& positions, int64_t degree, bool include_input) {
    check_positions(positions, degree);
    check_dtype("grad", grad.scalar_type(), positions);
    const int64_t columns = columns_of(positions, degree, include_input);
    TORCH_CHECK_VALUE(grad.dim() == 2 && grad.size(0) == positions.size(0) && grad.size(1) == columns, "grad must be of shape [",
                      positions.size(0), ", ", columns, "], not ", grad.sizes());
    TORCH_CHECK_VALUE(grad.device() == positions.device(), "grad is on ", grad.device(), " but the positions are on ", positions.device());
}

}  // namespace freqencoder
