// What the operators refuse, in words that name the argument.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

namespace fusedfield {

constexpr int64_t most_rows = int64_t{1} << 30;

// Refuses a tensor that is not of this dtype and shape (-1: any size) on the device of `like`.
inline void check(const char* name, const at::Tensor& tensor, const at::Tensor& like, at::ScalarType dtype, std::initializer_list<int64_t> shape) {
    TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must be ", dtype, ", not ", tensor.scalar_type());
    bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
    for (int64_t d = 0; fits && d < tensor.dim(); ++d) fits = shape.begin()[d] < 0 || shape.begin()[d] == tensor.size(d);
    TORCH_CHECK_VALUE(fits, name, " must be of shape ", at::IntArrayRef(shape.begin(), shape.size()), " (-1: any size), not ", tensor.sizes());
    TORCH_CHECK_VALUE(tensor.device() == like.device(), name, " is on ", tensor.device(), " but the samples are on ", like.device());
    TORCH_CHECK_VALUE(tensor.is_cuda(), name, " must be on a CUDA device, not on ", tensor.device());
}

// Refuses a tensor that is read where it lies, some numbers at once, and does not start at a multiple of their size. (Any other is copied first.)
inline void check_start(const char* name, const at::Tensor& tensor, int64_t numbers) {
    const uintptr_t bytes = numbers * tensor.element_size();
    const bool fits = !tensor.is_contiguous() || reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % bytes == 0;
    TORCH_CHECK_VALUE(fits, name, " must start at a multiple of ", bytes, " bytes: clone it");
}

inline void check_rows(const char* name, int64_t rows) {
    TORCH_CHECK_VALUE(rows <= most_rows, name, " must have at most 2^30 rows, not ", rows);
}

inline void check_count(const std::optional<at::Tensor>& count, const at::Tensor& like) {
    if (count) check("count", *count, like, at::kInt, {1});
}

// Contiguous float32 matrices of these shapes: parameters are used where they lie.
inline void check_weights(at::TensorList weights, const at::Tensor& like, std::initializer_list<std::initializer_list<int64_t>> shapes) {
    TORCH_CHECK_VALUE(weights.size() == shapes.size(), "weights must be ", shapes.size(), " matrices, not ", weights.size());
    for (size_t i = 0; i < weights.size(); ++i) {
        check(("weights[" + std::to_string(i) + "]").c_str(), weights[i], like, at::kFloat, shapes.begin()[i]);
        TORCH_CHECK_VALUE(weights[i].is_contiguous(), "weights[", i, "] must be contiguous");
    }
}

// A hash grid of at most this many levels and so many features an entry, for samples on the device of `like`.
inline void check_grid(const at::Tensor& like, const at::Tensor& table, const at::Tensor& offsets, const at::Tensor& resolutions, double bound,
                       int64_t most_levels, int64_t features = 2) {
    const bool real = table.scalar_type() == at::kHalf || table.scalar_type() == at::kFloat;
    TORCH_CHECK_TYPE(real, "table must be float32 or float16, not ", table.scalar_type());
    check("table", table, like, table.scalar_type(), {-1, features});
    TORCH_CHECK_VALUE(table.is_contiguous(), "table must be contiguous");
    check_start("table", table, features);
    check("resolutions", resolutions, like, at::kInt, {-1});
    const int64_t levels = resolutions.size(0);
    TORCH_CHECK_VALUE(levels >= 1 && levels <= most_levels, "resolutions must have 1 to ", most_levels, " levels, not ", levels);
    check("offsets", offsets, like, at::kInt, {levels + 1});
    TORCH_CHECK_VALUE(offsets.is_contiguous() && resolutions.is_contiguous(), "offsets and resolutions must be contiguous");
    TORCH_CHECK_VALUE(bound > 0, "bound must be positive, not ", bound);
}

inline void check_positions(const char* name, const at::Tensor& positions) {
    check(name, positions, positions, at::kFloat, {-1, 3});
    check_rows(name, positions.size(0));
}

inline void check_encoding(const at::Tensor& encoding, int64_t columns) {
    check("encoding", encoding, encoding, at::kHalf, {-1, columns});
    check_rows("encoding", encoding.size(0));
    check_start("encoding", encoding, 2);
}

// One tensor for each of the four grids of a MeRF field.
inline void check_four(const char* name, at::TensorList tensors) {
    TORCH_CHECK_VALUE(tensors.size() == 4, name, " must be 4 tensors, those of xyz, xy, yz and xz, not ", tensors.size());
}

inline void check_upstream(const at::Tensor& gradient, const std::optional<at::Tensor>& scale, const at::Tensor& like,
                           std::initializer_list<int64_t> shape) {
    check("gradient", gradient, like, at::kFloat, shape);
    if (gradient.dim() == 2) check_start("gradient", gradient, 2);
    if (scale) check("scale", *scale, like, at::kFloat, {});
}

}  // namespace fusedfield
