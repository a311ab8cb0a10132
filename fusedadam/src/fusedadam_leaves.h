// What the operator demands of its arguments, the same for CPU and CUDA, and the pointers in them; anything else is a Python error that
// names the argument.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>
#include <string>
#include <vector>

#include "fusedadam_math.h"

namespace fusedadam {

// The arguments of the operator that are one tensor a parameter.
struct Lists {
    at::TensorList parameters, gradients, first_moments, second_moments, copies, rates;
    c10::List<bool> sparse;
};

inline std::string element(const char* name, size_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

inline void check_tensor(const std::string& name, const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef shape,
                         at::Device device) {
    TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must be ", dtype, ", not ", tensor.scalar_type());
    TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must be of shape ", shape, ", not ", tensor.sizes());
    TORCH_CHECK_VALUE(tensor.device() == device, name, " is on ", tensor.device(), " but the control tensor on ", device);
}

inline void check_written(const std::string& name, const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef shape,
                          at::Device device) {
    check_tensor(name, tensor, dtype, shape, device);
    TORCH_CHECK_VALUE(tensor.is_contiguous(), name, " must be contiguous: it is changed in place");
}

inline void check_lists(const Lists& lists, at::Device device) {
    const size_t count = lists.parameters.size();
    const auto check_length = [&](const char* name, size_t length) {
        TORCH_CHECK_VALUE(length == count, name, " must have an entry for each of the ", count, " parameters, not ", length);
    };
    check_length("gradients", lists.gradients.size());
    check_length("first_moments", lists.first_moments.size());
    check_length("second_moments", lists.second_moments.size());
    check_length("copies", lists.copies.size());
    check_length("rates", lists.rates.size());
    check_length("sparse", lists.sparse.size());
    for (size_t i = 0; i < count; ++i) {
        const at::IntArrayRef shape = lists.parameters[i].sizes();
        check_written(element("parameters", i), lists.parameters[i], at::kFloat, shape, device);
        if (lists.sparse[i]) check_written(element("gradients", i), lists.gradients[i], at::kFloat, shape, device);
        else check_tensor(element("gradients", i), lists.gradients[i], at::kFloat, shape, device);
        check_written(element("first_moments", i), lists.first_moments[i], at::kFloat, shape, device);
        check_written(element("second_moments", i), lists.second_moments[i], at::kFloat, shape, device);
        const bool copied = lists.copies[i].numel() > 0;
        check_written(element("copies", i), lists.copies[i], at::kHalf, copied ? shape : lists.copies[i].sizes(), device);
        check_tensor(element("rates", i), lists.rates[i], at::kFloat, {}, device);
    }
}

// Checks the settings and returns them in the form of the mathematics.
inline Settings checked_settings(double beta1, double beta2, double eps, std::optional<int64_t> growth_interval,
                                 const at::Tensor& control) {
    check_written("control", control, at::kFloat, {static_cast<int64_t>(sizeof(Control) / sizeof(float))}, control.device());
    TORCH_CHECK_VALUE(beta1 >= 0 && beta1 < 1, "beta1 must be from 0 to below 1, not ", beta1);
    TORCH_CHECK_VALUE(beta2 >= 0 && beta2 < 1, "beta2 must be from 0 to below 1, not ", beta2);
    TORCH_CHECK_VALUE(eps >= 0, "eps must not be negative, but is ", eps);
    const int64_t interval = growth_interval.value_or(0);
    TORCH_CHECK_VALUE(!growth_interval || (interval >= 1 && interval <= greatest_interval), "growth_interval must be 1 to ",
                      greatest_interval, " or None, not ", interval);
    return {beta1, beta2, static_cast<float>(eps), static_cast<float>(interval)};
}

inline Control* control_of(const at::Tensor& control) { return reinterpret_cast<Control*>(control.mutable_data_ptr<float>()); }

// The pointers of checked lists, parameters without elements left out. Dense gradients that are not contiguous are copied into `kept`,
// which has to live until the work is on its stream.
template <typename Half>
std::vector<Leaf<Half>> leaves_of(const Lists& lists, std::vector<at::Tensor>& kept) {
    std::vector<Leaf<Half>> leaves;
    for (size_t i = 0; i < lists.parameters.size(); ++i) {
        const at::Tensor& parameter = lists.parameters[i];
        if (parameter.numel() == 0) continue;
        kept.push_back(lists.gradients[i].contiguous());
        auto* copy = lists.copies[i].numel() ? static_cast<Half*>(lists.copies[i].mutable_data_ptr()) : nullptr;
        leaves.push_back({parameter.mutable_data_ptr<float>(), kept.back().mutable_data_ptr<float>(),
                          lists.first_moments[i].mutable_data_ptr<float>(), lists.second_moments[i].mutable_data_ptr<float>(), copy,
                          lists.rates[i].const_data_ptr<float>(), parameter.numel(), lists.sparse[i]});
    }
    return leaves;
}

}  // namespace fusedadam
