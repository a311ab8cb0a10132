// Registration of the operators and their CPU form: checks, results, pointers; the loops are in gridencoder_loops.h.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "gridencoder_checks.h"
#include "gridencoder_loops.h"

namespace gridencoder {
namespace {

// Calls work(Value, Real) with null pointers of the table's type and of the type that is computed in.
template <typename Work>
void for_dtype(at::ScalarType dtype, const Work& work) {
    if (dtype == at::kDouble) work(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    else if (dtype == at::kHalf) work(static_cast<at::Half*>(nullptr), static_cast<float*>(nullptr));
    else work(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
}

void check_offsets(const at::Tensor& offsets, int64_t levels, int64_t entries) {
    const int32_t* offset = offsets.const_data_ptr<int32_t>();
    for (int64_t l = 0; l < levels; ++l)
        TORCH_CHECK_VALUE(offset[l] >= 0 && offset[l] < offset[l + 1] && offset[l + 1] <= entries, "offsets: level ", l,
                          " does not fit a table of ", entries, " entries");
}

// The pyramid, once it is known that the table holds every level and that each can be indexed: reading the offsets is free here, so a
// wrong one is named before a loop starts.
Grid checked_grid(const at::Tensor& offsets, const at::Tensor& resolutions, const Shape& shape, Options options) {
    check_offsets(offsets, shape.levels, shape.entries);
    const Grid grid{offsets.const_data_ptr<int32_t>(), resolutions.const_data_ptr<int32_t>(), shape.entries,
                    static_cast<int>(shape.levels), options};
    for (int l = 0; l < grid.levels; ++l) {
        TORCH_CHECK_VALUE(grid.resolutions[l] > 0, "resolutions: level ", l, " has ", grid.resolutions[l], " entries along an axis");
        const Level level = shape.dimensions == 2 ? grid.level<2>(l) : grid.level<3>(l);
        TORCH_CHECK_VALUE(level.entries > 0, "offsets: level ", l, " has ", grid.offsets[l + 1] - grid.offsets[l],
                          " entries, fewer than its grid and not a power of two");
    }
    return grid;
}

at::Tensor grid_encode_forward(const at::Tensor& positions, const at::Tensor& table, const at::Tensor& offsets,
                               const at::Tensor& resolutions, std::string_view gridtype, std::string_view interpolation,
                               bool align_corners) {
    const Shape shape = check_forward(positions, table, offsets, resolutions);
    const Grid grid = checked_grid(offsets, resolutions, shape, check_options(gridtype, interpolation, align_corners));
    const at::Tensor p = positions.contiguous(), t = table.contiguous();
    at::Tensor output = at::empty({shape.samples, shape.levels * shape.features}, table.options());
    for_dtype(table.scalar_type(), [&](auto* value, auto* real) {
        using Value = std::remove_pointer_t<decltype(value)>;
        using Real = std::remove_pointer_t<decltype(real)>;
        for_shape(shape, [&](auto d, auto f) {
            forward_loop<d(), f()>(p.const_data_ptr<Real>(), t.const_data_ptr<Value>(), grid, shape.samples,
                                   output.mutable_data_ptr<Value>());
        });
    });
    return output;
}

void add_grid_encode_gradient(const at::Tensor& gradient, const at::Tensor& grad, const at::Tensor& positions, const at::Tensor& offsets,
                              const at::Tensor& resolutions, std::string_view gridtype, std::string_view interpolation,
                              bool align_corners) {
    const Shape shape = check_add_gradient(gradient, grad, positions, offsets, resolutions);
    const Grid grid = checked_grid(offsets, resolutions, shape, check_options(gridtype, interpolation, align_corners));
    const at::Tensor g = grad.contiguous(), p = positions.contiguous();
    for_dtype(grad.scalar_type(), [&](auto* value, auto* real) {
        using Value = std::remove_pointer_t<decltype(value)>;
        using Real = std::remove_pointer_t<decltype(real)>;
        for_shape(shape, [&](auto d, auto f) {
            backward_loop<d(), f()>(g.const_data_ptr<Value>(), p.const_data_ptr<Real>(), grid, shape.samples,
                                    gradient.mutable_data_ptr<Real>());
        });
    });
}

at::Tensor grid_encode_backward(const at::Tensor& grad, const at::Tensor& positions, const at::Tensor& offsets,
                                const at::Tensor& resolutions, int64_t entries, int64_t features, std::string_view gridtype,
                                std::string_view interpolation, bool align_corners) {
    at::Tensor gradient = zero_gradient(positions, entries, features);
    add_grid_encode_gradient(gradient, grad, positions, offsets, resolutions, gridtype, interpolation, align_corners);
    return gradient;
}

at::Tensor grid_encode_backward_positions(const at::Tensor& grad, const at::Tensor& positions, const at::Tensor& table,
                                          const at::Tensor& offsets, const at::Tensor& resolutions, std::string_view gridtype,
                                          std::string_view interpolation, bool align_corners) {
    const Shape shape = check_backward_positions(grad, positions, table, offsets, resolutions);
    const Grid grid = checked_grid(offsets, resolutions, shape, check_options(gridtype, interpolation, align_corners));
    const at::Tensor g = grad.contiguous(), p = positions.contiguous(), t = table.contiguous();
    at::Tensor result = at::empty({shape.samples, shape.dimensions}, positions.options());
    for_dtype(table.scalar_type(), [&](auto* value, auto* real) {
        using Value = std::remove_pointer_t<decltype(value)>;
        using Real = std::remove_pointer_t<decltype(real)>;
        for_shape(shape, [&](auto d, auto f) {
            backward_positions_loop<d(), f()>(g.const_data_ptr<Value>(), p.const_data_ptr<Real>(), t.const_data_ptr<Value>(), grid,
                                              shape.samples, result.mutable_data_ptr<Real>());
        });
    });
    return result;
}

void add_total_variation_gradient(const at::Tensor& table, const at::Tensor& gradient, const at::Tensor& offsets,
                                  const at::Tensor& resolutions, const at::Tensor& positions, const at::Tensor& weight,
                                  std::string_view gridtype, bool align_corners) {
    const Shape shape = check_total_variation(table, gradient, offsets, resolutions, positions, weight);
    const Grid grid = checked_grid(offsets, resolutions, shape, check_options(gridtype, "linear", align_corners));
    if (shape.samples == 0) return;
    const at::Tensor p = positions.contiguous(), t = table.contiguous();
    for_dtype(table.scalar_type(), [&](auto*, auto* real) {
        using Real = std::remove_pointer_t<decltype(real)>;
        const Real scale = static_cast<Real>(*weight.const_data_ptr<float>()) / static_cast<Real>(shape.samples);
        for_shape(shape, [&](auto d, auto f) {
            total_variation_loop<d(), f()>(t.const_data_ptr<Real>(), grid, p.const_data_ptr<Real>(), shape.samples, scale,
                                           gradient.mutable_data_ptr<Real>());
        });
    });
}

void add_weight_decay_gradient(const at::Tensor& table, const at::Tensor& gradient, const at::Tensor& offsets, const at::Tensor& weight) {
    const Shape shape = check_weight_decay(table, gradient, offsets, weight);
    check_offsets(offsets, shape.levels, shape.entries);
    const at::Tensor t = table.contiguous();
    const int32_t* offset = offsets.const_data_ptr<int32_t>();
    for_dtype(table.scalar_type(), [&](auto*, auto* real) {
        using Real = std::remove_pointer_t<decltype(real)>;
        const Real scale = static_cast<Real>(*weight.const_data_ptr<float>());
        const Real* values = t.const_data_ptr<Real>();
        Real* slopes = gradient.mutable_data_ptr<Real>();
        for (int64_t l = 0; l < shape.levels; ++l) {
            const int64_t first = offset[l] * shape.features, last = offset[l + 1] * shape.features;
            at::parallel_for(first, last, 1 << 14, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) slopes[i] += weight_decay_gradient(values[i], scale, last - first);
            });
        }
    });
}

}  // namespace

TORCH_LIBRARY(gridencoder, library) {
    library.def(
        "grid_encode_forward(Tensor positions, Tensor table, Tensor offsets, Tensor resolutions, str gridtype='hash', str "
        "interpolation='linear', bool align_corners=False) -> Tensor");
    library.def(
        "add_grid_encode_gradient(Tensor(a!) gradient, Tensor grad, Tensor positions, Tensor offsets, Tensor resolutions, str "
        "gridtype='hash', str interpolation='linear', bool align_corners=False) -> ()");
    library.def(
        "grid_encode_backward(Tensor grad, Tensor positions, Tensor offsets, Tensor resolutions, int entries, int features, str "
        "gridtype='hash', str interpolation='linear', bool align_corners=False) -> Tensor");
    library.def(
        "grid_encode_backward_positions(Tensor grad, Tensor positions, Tensor table, Tensor offsets, Tensor resolutions, str "
        "gridtype='hash', str interpolation='linear', bool align_corners=False) -> Tensor");
    library.def(
        "add_total_variation_gradient(Tensor table, Tensor(a!) gradient, Tensor offsets, Tensor resolutions, Tensor positions, Tensor "
        "weight, str gridtype='hash', bool align_corners=False) -> ()");
    library.def("add_weight_decay_gradient(Tensor table, Tensor(a!) gradient, Tensor offsets, Tensor weight) -> ()");
}

TORCH_LIBRARY_IMPL(gridencoder, CPU, library) {
    library.impl("grid_encode_forward", grid_encode_forward);
    library.impl("add_grid_encode_gradient", add_grid_encode_gradient);
    library.impl("grid_encode_backward", grid_encode_backward);
    library.impl("grid_encode_backward_positions", grid_encode_backward_positions);
    library.impl("add_total_variation_gradient", add_total_variation_gradient);
    library.impl("add_weight_decay_gradient", add_weight_decay_gradient);
}

}  // namespace gridencoder
