// From tensors to what the launchers take.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "fusedfield_cuda.h"

namespace fusedfield {

using at::Tensor;
using Count = std::optional<Tensor>;

inline const __half* halves(const Tensor& tensor) { return static_cast<const __half*>(tensor.const_data_ptr()); }
inline __half* halves_to(const Tensor& tensor) { return static_cast<__half*>(tensor.mutable_data_ptr()); }

inline Batch batch_of(const Tensor& rows, const Count& count) {
    return {static_cast<int>(rows.size(0)), count ? count->const_data_ptr<int32_t>() : nullptr};
}

inline int64_t numbers(at::TensorList weights) {
    int64_t sum = 0;
    for (const Tensor& weight : weights) sum += weight.numel();
    return sum;
}

}  // namespace fusedfield
