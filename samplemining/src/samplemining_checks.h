// What the operators demand of their arguments, the same for CPU and CUDA; anything else is a Python error that names the argument.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <string_view>
#include <vector>

#include "samplemining_math.h"
#include "take_rows.h"

namespace samplemining {

inline void check_like_delta(const char* name, const at::Tensor& tensor, const at::Tensor& delta, at::ScalarType dtype, int64_t size) {
    TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must be ", dtype, ", not ", tensor.scalar_type());
    TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.size(0) == size, name, " must be of shape [", size, "], not ", tensor.sizes());
    TORCH_CHECK_VALUE(tensor.device() == delta.device(), name, " is on ", tensor.device(), " but delta is on ", delta.device());
}

inline void check_thin(const at::Tensor& delta, const at::Tensor& noise, const at::Tensor& count, const at::Tensor& tau) {
    TORCH_CHECK_TYPE(delta.scalar_type() == at::kFloat, "delta must be float32, not ", delta.scalar_type());
    const bool shaped = delta.dim() == 2 && delta.size(1) >= 1 && delta.size(1) <= max_columns;
    TORCH_CHECK_VALUE(shaped, "delta must be of shape [B, C] with C from 1 to ", max_columns, ", not ", delta.sizes());
    TORCH_CHECK_VALUE(delta.size(0) <= max_rows, "delta must have at most ", max_rows, " rows, not ", delta.size(0));
    check_like_delta("noise", noise, delta, at::kFloat, delta.size(0));
    check_like_delta("count", count, delta, at::kInt, 1);
    check_like_delta("tau", tau, delta, at::kFloat, 1);
}

inline void check_share(const char* name, double value) {
    TORCH_CHECK_VALUE(value >= 0 && value <= 1, name, " must be from 0 to 1, not ", value);
}

// The rule that the settings name, once they are known to be good.
inline Rule rule_of(int64_t room, std::string_view budget, double fraction, double floor, double cap, double momentum, std::string_view law,
                    double alpha) {
    TORCH_CHECK_VALUE(room >= 0 && room < (int64_t(1) << 31), "room must be from 0 to 2^31 - 1 rows, not ", room);
    check_share("fraction", fraction);
    check_share("floor", floor);
    check_share("cap", cap);
    TORCH_CHECK_VALUE(floor <= cap, "floor must be at most cap, not ", floor, " over ", cap);
    check_share("momentum", momentum);
    check_share("alpha", alpha);
    Rule rule{Budget::tau, Law::exponential, fraction, floor, cap, momentum, static_cast<float>(alpha), room};
    if (budget == "ess") rule.budget = Budget::ess;
    else if (budget == "fixed") rule.budget = Budget::fixed;
    else TORCH_CHECK_VALUE(budget == "tau", "budget must be tau, ess or fixed, not ", budget);
    if (law == "linear") rule.law = Law::linear;
    else if (law == "uniform") rule.law = Law::uniform;
    else if (law == "all") rule.law = Law::all;
    else TORCH_CHECK_VALUE(law == "exponential", "law must be exponential, linear, uniform or all, not ", law);
    return rule;
}

inline int64_t row_bytes(const at::Tensor& tensor) {
    int64_t bytes = tensor.element_size();
    for (int64_t d = 1; d < tensor.dim(); ++d) bytes *= tensor.size(d);
    return bytes;
}

inline void check_take(at::TensorList tensors, const at::Tensor& index) {
    TORCH_CHECK_VALUE(tensors.size() >= 1 && tensors.size() <= max_tensors, "tensors must be 1 to ", max_tensors, " tensors, not ",
                      tensors.size());
    TORCH_CHECK_TYPE(index.scalar_type() == at::kLong, "index must be int64, not ", index.scalar_type());
    TORCH_CHECK_VALUE(index.dim() == 1, "index must be of shape [R], not ", index.sizes());
    for (size_t i = 0; i < tensors.size(); ++i) {
        const at::Tensor& tensor = tensors[i];
        const bool shaped = tensor.dim() >= 1 && tensor.size(0) == tensors[0].size(0);
        TORCH_CHECK_VALUE(shaped, "tensors[", i, "] must be of shape [B, ...], B as in tensors[0], not ", tensor.sizes());
        const int64_t bytes = row_bytes(tensor);
        TORCH_CHECK_VALUE(bytes % 4 == 0 && bytes <= max_row_bytes, "tensors[", i, "] must have rows of a multiple of 4 bytes, at most ",
                          max_row_bytes, ", not ", bytes);
        TORCH_CHECK_VALUE(tensor.device() == index.device(), "tensors[", i, "] is on ", tensor.device(), " but index is on ",
                          index.device());
    }
}

// Room for the rows that are taken of a tensor.
inline std::vector<int64_t> taken_sizes(const at::Tensor& tensor, int64_t rows) {
    std::vector<int64_t> sizes = tensor.sizes().vec();
    sizes[0] = rows;
    return sizes;
}

}  // namespace samplemining
