// What the operators demand of their arguments, the same for CPU and CUDA: whoever calls `torch.ops.gridencoder` with anything
// else gets a Python error that names the argument, never a crash.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <string_view>
#include <type_traits>

#include "gridencoder_math.h"

namespace gridencoder {

struct Shape {
    int64_t samples, levels, entries, dimensions, features;
};

// Calls work(D, F) with the compile-time numbers of this shape.
template <typename Work>
void for_shape(const Shape& shape, const Work& work) {
    const auto for_features = [&](auto d) {
        switch (shape.features) {
            case 1: return work(d, std::integral_constant<int, 1>{});
            case 2: return work(d, std::integral_constant<int, 2>{});
            case 4: return work(d, std::integral_constant<int, 4>{});
            case 8: return work(d, std::integral_constant<int, 8>{});
        }
        TORCH_CHECK_VALUE(false, "table: ", shape.features, " features an entry are not compiled; 1, 2, 4 and 8 are");
    };
    if (shape.dimensions == 2) return for_features(std::integral_constant<int, 2>{});
    if (shape.dimensions == 3) return for_features(std::integral_constant<int, 3>{});
    TORCH_CHECK_VALUE(false, "positions: ", shape.dimensions, " dimensions are not compiled; 2 and 3 are");
}

// The shape itself, once it is known that something is compiled for it.
inline Shape compiled(const Shape& shape) {
    for_shape(shape, [](auto, auto) {});
    return shape;
}

inline Options check_options(std::string_view gridtype, std::string_view interpolation, bool align_corners) {
    TORCH_CHECK_VALUE(gridtype == "hash" || gridtype == "tiled", "gridtype must be 'hash' or 'tiled', not '", gridtype, "'");
    TORCH_CHECK_VALUE(interpolation == "linear" || interpolation == "smoothstep", "interpolation must be 'linear' or 'smoothstep', not '",
                      interpolation, "'");
    return {gridtype == "tiled", interpolation == "smoothstep", align_corners};
}

inline void check_same_device(const char* name, const at::Tensor& tensor, const at::Tensor& other) {
    TORCH_CHECK_VALUE(tensor.device() == other.device(), name, " is on ", tensor.device(), " but the other arguments are on ",
                      other.device());
}

inline void check_matrix(const char* name, const at::Tensor& tensor, at::ScalarType dtype) {
    TORCH_CHECK_VALUE(tensor.dim() == 2, name, " must be a matrix, not of shape ", tensor.sizes());
    TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must be ", dtype, ", not ", tensor.scalar_type());
}

inline void check_integers(const char* name, const at::Tensor& tensor, const at::Tensor& other) {
    TORCH_CHECK_TYPE(tensor.scalar_type() == at::kInt, name, " must be int32, not ", tensor.scalar_type());
    TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.is_contiguous(), name, " must be one contiguous row, not of shape ", tensor.sizes());
    check_same_device(name, tensor, other);
}

inline void check_level_rows(const at::Tensor& offsets, const at::Tensor& resolutions, const at::Tensor& other) {
    check_integers("offsets", offsets, other);
    check_integers("resolutions", resolutions, other);
    TORCH_CHECK_VALUE(resolutions.size(0) >= 1 && offsets.size(0) == resolutions.size(0) + 1,
                      "offsets must have one element more than resolutions, not ", offsets.size(0), " for ", resolutions.size(0));
}

// Half tables are read with float32 positions, float64 ones (CPU, for numerical checks of the gradient) with float64 positions.
inline at::ScalarType computed_in(const char* name, const at::Tensor& tensor) {
    const at::ScalarType dtype = tensor.scalar_type();
    const bool known = dtype == at::kFloat || dtype == at::kHalf || (dtype == at::kDouble && tensor.is_cpu());
    TORCH_CHECK_TYPE(known, name, " must be float32, float16 or, on the CPU, float64, not ", dtype, " on ", tensor.device());
    return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

inline Shape check_forward(const at::Tensor& positions, const at::Tensor& table, const at::Tensor& offsets, const at::Tensor& resolutions) {
    check_matrix("positions", positions, computed_in("table", table));
    check_matrix("table", table, table.scalar_type());
    check_same_device("table", table, positions);
    check_level_rows(offsets, resolutions, positions);
    return compiled({positions.size(0), resolutions.size(0), table.size(0), positions.size(1), table.size(1)});
}

// What a gradient of a table [entries, features] is added to.
inline at::Tensor zero_gradient(const at::Tensor& positions, int64_t entries, int64_t features) {
    TORCH_CHECK_VALUE(entries > 0 && features > 0, "entries, features must be positive, not ", entries, ", ", features);
    return at::zeros({entries, features}, positions.options());
}

inline Shape check_backward(const at::Tensor& grad, const at::Tensor& positions, const at::Tensor& offsets, const at::Tensor& resolutions,
                            int64_t entries, int64_t features) {
    check_matrix("positions", positions, computed_in("grad", grad));
    check_matrix("grad", grad, grad.scalar_type());
    check_same_device("grad", grad, positions);
    check_level_rows(offsets, resolutions, positions);
    TORCH_CHECK_VALUE(grad.size(0) == positions.size(0) && grad.size(1) == resolutions.size(0) * features, "grad must be of shape [",
                      positions.size(0), ", ", resolutions.size(0) * features, "], not ", grad.sizes());
    return compiled({positions.size(0), resolutions.size(0), entries, positions.size(1), features});
}

inline Shape check_add_gradient(const at::Tensor& gradient, const at::Tensor& grad, const at::Tensor& positions, const at::Tensor& offsets,
                                const at::Tensor& resolutions) {
    check_matrix("gradient", gradient, computed_in("grad", grad));
    check_same_device("gradient", gradient, positions);
    TORCH_CHECK_VALUE(gradient.is_contiguous(), "gradient must be contiguous, since it is changed in place");
    return check_backward(grad, positions, offsets, resolutions, gradient.size(0), gradient.size(1));
}

inline Shape check_backward_positions(const at::Tensor& grad, const at::Tensor& positions, const at::Tensor& table,
                                      const at::Tensor& offsets, const at::Tensor& resolutions) {
    check_forward(positions, table, offsets, resolutions);
    TORCH_CHECK_TYPE(grad.scalar_type() == table.scalar_type(), "grad must be ", table.scalar_type(), " like the table, not ",
                     grad.scalar_type());
    return check_backward(grad, positions, offsets, resolutions, table.size(0), table.size(1));
}

inline void check_gradient(const at::Tensor& table, const at::Tensor& gradient, const at::Tensor& weight) {
    const bool known = table.scalar_type() == at::kFloat || (table.scalar_type() == at::kDouble && table.is_cpu());
    TORCH_CHECK_TYPE(known, "table must be float32 or, on the CPU, float64, not ", table.scalar_type(), " on ", table.device());
    check_matrix("table", table, table.scalar_type());
    check_matrix("gradient", gradient, table.scalar_type());
    TORCH_CHECK_VALUE(gradient.sizes() == table.sizes() && gradient.is_contiguous(),
                      "gradient must be contiguous and of the table's shape ", table.sizes(), ", not ", gradient.sizes());
    check_same_device("gradient", gradient, table);
    TORCH_CHECK_TYPE(weight.scalar_type() == at::kFloat, "weight must be float32, not ", weight.scalar_type());
    TORCH_CHECK_VALUE(weight.numel() == 1, "weight must be one number, not of shape ", weight.sizes());
    check_same_device("weight", weight, table);
}

inline Shape check_total_variation(const at::Tensor& table, const at::Tensor& gradient, const at::Tensor& offsets,
                                   const at::Tensor& resolutions, const at::Tensor& positions, const at::Tensor& weight) {
    check_gradient(table, gradient, weight);
    return check_forward(positions, table, offsets, resolutions);
}

inline Shape check_weight_decay(const at::Tensor& table, const at::Tensor& gradient, const at::Tensor& offsets, const at::Tensor& weight) {
    check_gradient(table, gradient, weight);
    check_integers("offsets", offsets, table);
    TORCH_CHECK_VALUE(offsets.size(0) >= 2, "offsets must have at least two elements, not ", offsets.size(0));
    return {0, offsets.size(0) - 1, table.size(0), 0, table.size(1)};
}

}  // namespace gridencoder
