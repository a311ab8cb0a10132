// Registration of the operators and their CPU form. Loops are bit-for-bit repeatable: the forward pass is split over samples, and
// whatever adds to the table is split over levels, so no entry is ever shared by two threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>

#include "gridencoder_checks.h"
#include "gridencoder_math.h"

namespace gridencoder {
namespace {

// Levels differ in cost (the fine ones miss the cache), so threads take them one at a time, the finest first.
template <typename Work>
void for_each_level(int64_t levels, const Work& work) {
    std::atomic<int64_t> taken{0};
    at::parallel_for(0, std::min<int64_t>(levels, at::get_num_threads()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; ++thread)
            for (int64_t i = taken++; i < levels; i = taken++) work(static_cast<int>(levels - 1 - i));
    });
}

// Entries and weights of the corners around a few samples, corner by corner, so that the compiler computes them in vector registers.
// Samples outside the unit cube get weight zero.
template <int D, typename Real>
struct Stencils {
    static constexpr int width = 16;
    uint32_t entry[1 << D][width];
    Real weight[1 << D][width];

    HOST_DEVICE void locate(const Real* positions, int count, const Level& level, bool dense) {
        Real coordinate[D][width];
        for (int i = 0; i < width; ++i)
            for (int d = 0; d < D; ++d) coordinate[d][i] = i < count ? positions[i * D + d] : Real(-1);
#pragma GCC ivdep
        for (int i = 0; i < width; ++i) {
            Real position[D];
            UNROLL
            for (int d = 0; d < D; ++d) position[d] = coordinate[d][i];
            const Real inside = inside_unit_cube<D>(position) ? Real(1) : Real(0);
            const Corners<D, Real> corners(position, level.resolution, dense);
            UNROLL
            for (int corner = 0; corner < (1 << D); ++corner) {
                entry[corner][i] = corners.index(corner, level.entries, dense);
                weight[corner][i] = inside * corners.weight(corner);
            }
        }
    }
};

template <int D, int F, typename Value, typename Real>
void forward_loop(const Real* positions, const Value* table, const int32_t* offsets, const int32_t* resolutions, int64_t entries,
                  int64_t samples, int levels, Value* output) {
    constexpr int width = Stencils<D, Real>::width;
    constexpr int64_t block = 1024;  // samples whose positions and results stay in the cache while the levels pass by
    at::parallel_for(0, (samples + block - 1) / block, 1, [&](int64_t begin, int64_t end) {
        Stencils<D, Real> stencils;
        for (int64_t b = begin; b < end; ++b) {
            const int64_t last = std::min(samples, (b + 1) * block);
            for (int l = 0; l < levels; ++l) {
                const Level level = level_at<D>(offsets, resolutions, l, entries);
                const Value* level_table = table + level.offset * F;
                for (int64_t i = b * block; i < last; i += width) {
                    const int count = static_cast<int>(std::min<int64_t>(width, last - i));
                    if (level.dense) stencils.locate(positions + i * D, count, level, true);
                    else stencils.locate(positions + i * D, count, level, false);
                    for (int j = 0; j < count; ++j) {
                        Real result[F] = {};
                        UNROLL
                        for (int corner = 0; corner < (1 << D); ++corner)
                            for (int f = 0; f < F; ++f)
                                result[f] += stencils.weight[corner][j] *
                                             static_cast<Real>(level_table[uint64_t{stencils.entry[corner][j]} * F + f]);
                        for (int f = 0; f < F; ++f) output[((i + j) * levels + l) * F + f] = static_cast<Value>(result[f]);
                    }
                }
            }
        }
    });
}

template <int D, int F, typename Value, typename Real>
void backward_loop(const Value* grad, const Real* positions, const int32_t* offsets, const int32_t* resolutions, int64_t entries,
                   int64_t samples, int levels, Real* result) {
    constexpr int width = Stencils<D, Real>::width;
    for_each_level(levels, [&](int l) {
        const Level level = level_at<D>(offsets, resolutions, l, entries);
        Real* level_result = result + level.offset * F;
        Stencils<D, Real> stencils;
        for (int64_t i = 0; i < samples; i += width) {
            const int count = static_cast<int>(std::min<int64_t>(width, samples - i));
            if (level.dense) stencils.locate(positions + i * D, count, level, true);
            else stencils.locate(positions + i * D, count, level, false);
            for (int j = 0; j < count; ++j) {
                Real slope[F];
                for (int f = 0; f < F; ++f) slope[f] = static_cast<Real>(grad[((i + j) * levels + l) * F + f]);
                if (std::all_of(slope, slope + F, [](Real value) { return value == Real(0); })) continue;
                UNROLL
                for (int corner = 0; corner < (1 << D); ++corner)
                    for (int f = 0; f < F; ++f)
                        level_result[uint64_t{stencils.entry[corner][j]} * F + f] += stencils.weight[corner][j] * slope[f];
            }
        }
    });
}

template <int D, int F, typename Real>
void total_variation_loop(const Real* table, const int32_t* offsets, const int32_t* resolutions, int64_t entries, const Real* positions,
                          int64_t samples, int levels, Real scale, Real* gradient) {
    for_each_level(levels, [&](int l) {
        const Level level = level_at<D>(offsets, resolutions, l, entries);
        Real* level_gradient = gradient + level.offset * F;
        const auto add = [&](uint64_t entry, int f, Real value) { level_gradient[entry * F + f] += value; };
        for (int64_t i = 0; i < samples; ++i) {
            if (!inside_unit_cube<D>(positions + i * D)) continue;
            total_variation_gradient<D, F>(positions + i * D, table + level.offset * F, level, scale, add);
        }
    });
}

// The table must hold every level: reading the offsets is free here, so a wrong one is named before a loop starts.
void check_levels(const at::Tensor& offsets, const at::Tensor& resolutions, int64_t entries) {
    const int32_t* offset = offsets.const_data_ptr<int32_t>();
    for (int64_t l = 0; l < resolutions.size(0); ++l)
        TORCH_CHECK_VALUE(
            offset[l] >= 0 && offset[l] < offset[l + 1] && offset[l + 1] <= entries && resolutions.const_data_ptr<int32_t>()[l] > 0,
            "offsets, resolutions: level ", l, " does not fit a table of ", entries, " entries");
}

// Calls work(Value, Real) with null pointers of the table's type and of the type that is computed in.
template <typename Work>
void for_dtype(at::ScalarType dtype, const Work& work) {
    if (dtype == at::kDouble) work(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    else if (dtype == at::kHalf) work(static_cast<at::Half*>(nullptr), static_cast<float*>(nullptr));
    else work(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
}

at::Tensor grid_encode_forward(const at::Tensor& positions, const at::Tensor& table, const at::Tensor& offsets,
                               const at::Tensor& resolutions) {
    const Shape shape = check_forward(positions, table, offsets, resolutions);
    check_levels(offsets, resolutions, shape.entries);
    const at::Tensor p = positions.contiguous(), t = table.contiguous();
    at::Tensor output = at::empty({shape.samples, shape.levels * shape.features}, table.options());
    for_dtype(table.scalar_type(), [&](auto* value, auto* real) {
        using Value = std::remove_pointer_t<decltype(value)>;
        using Real = std::remove_pointer_t<decltype(real)>;
        for_shape(shape, [&](auto d, auto f) {
            forward_loop<d(), f()>(p.const_data_ptr<Real>(), t.const_data_ptr<Value>(), offsets.const_data_ptr<int32_t>(),
                                   resolutions.const_data_ptr<int32_t>(), shape.entries, shape.samples, static_cast<int>(shape.levels),
                                   output.mutable_data_ptr<Value>());
        });
    });
    return output;
}

at::Tensor grid_encode_backward(const at::Tensor& grad, const at::Tensor& positions, const at::Tensor& offsets,
                                const at::Tensor& resolutions, int64_t entries, int64_t features) {
    const Shape shape = check_backward(grad, positions, offsets, resolutions, entries, features);
    check_levels(offsets, resolutions, entries);
    const at::Tensor g = grad.contiguous(), p = positions.contiguous();
    at::Tensor result = at::zeros({entries, features}, positions.options());
    for_dtype(grad.scalar_type(), [&](auto* value, auto* real) {
        using Value = std::remove_pointer_t<decltype(value)>;
        using Real = std::remove_pointer_t<decltype(real)>;
        for_shape(shape, [&](auto d, auto f) {
            backward_loop<d(), f()>(g.const_data_ptr<Value>(), p.const_data_ptr<Real>(), offsets.const_data_ptr<int32_t>(),
                                    resolutions.const_data_ptr<int32_t>(), entries, shape.samples, static_cast<int>(shape.levels),
                                    result.mutable_data_ptr<Real>());
        });
    });
    return result;
}

void add_total_variation_gradient(const at::Tensor& table, const at::Tensor& gradient, const at::Tensor& offsets,
                                  const at::Tensor& resolutions, const at::Tensor& positions, const at::Tensor& weight) {
    const Shape shape = check_total_variation(table, gradient, offsets, resolutions, positions, weight);
    check_levels(offsets, resolutions, shape.entries);
    if (shape.samples == 0) return;
    const at::Tensor p = positions.contiguous(), t = table.contiguous();
    for_dtype(table.scalar_type(), [&](auto*, auto* real) {
        using Real = std::remove_pointer_t<decltype(real)>;
        const Real scale = static_cast<Real>(*weight.const_data_ptr<float>()) / static_cast<Real>(shape.samples);
        for_shape(shape, [&](auto d, auto f) {
            total_variation_loop<d(), f()>(t.const_data_ptr<Real>(), offsets.const_data_ptr<int32_t>(),
                                           resolutions.const_data_ptr<int32_t>(), shape.entries, p.const_data_ptr<Real>(), shape.samples,
                                           static_cast<int>(shape.levels), scale, gradient.mutable_data_ptr<Real>());
        });
    });
}

void add_weight_decay_gradient(const at::Tensor& table, const at::Tensor& gradient, const at::Tensor& offsets, const at::Tensor& weight) {
    const Shape shape = check_weight_decay(table, gradient, offsets, weight);
    const at::Tensor t = table.contiguous();
    const int32_t* offset = offsets.const_data_ptr<int32_t>();
    for_dtype(table.scalar_type(), [&](auto*, auto* real) {
        using Real = std::remove_pointer_t<decltype(real)>;
        const Real scale = static_cast<Real>(*weight.const_data_ptr<float>());
        const Real* values = t.const_data_ptr<Real>();
        Real* slopes = gradient.mutable_data_ptr<Real>();
        for (int64_t l = 0; l < shape.levels; ++l) {
            const int64_t first = offset[l], last = offset[l + 1];
            TORCH_CHECK_VALUE(first >= 0 && first < last && last <= shape.entries, "offsets: level ", l, " does not fit the table");
            const Level level{first, static_cast<uint32_t>(last - first), 0, false};
            at::parallel_for(first * shape.features, last * shape.features, 1 << 14, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i)
                    slopes[i] += weight_decay_gradient(values[i], scale, level, static_cast<int>(shape.features));
            });
        }
    });
}

}  // namespace

TORCH_LIBRARY(gridencoder, library) {
    library.def("grid_encode_forward(Tensor positions, Tensor table, Tensor offsets, Tensor resolutions) -> Tensor");
    library.def(
        "grid_encode_backward(Tensor grad, Tensor positions, Tensor offsets, Tensor resolutions, int entries, int features) -> Tensor");
    library.def(
        "add_total_variation_gradient(Tensor table, Tensor(a!) gradient, Tensor offsets, Tensor resolutions, Tensor positions, Tensor "
        "weight) -> ()");
    library.def("add_weight_decay_gradient(Tensor table, Tensor(a!) gradient, Tensor offsets, Tensor weight) -> ()");
}

TORCH_LIBRARY_IMPL(gridencoder, CPU, library) {
    library.impl("grid_encode_forward", grid_encode_forward);
    library.impl("grid_encode_backward", grid_encode_backward);
    library.impl("add_total_variation_gradient", add_total_variation_gradient);
    library.impl("add_weight_decay_gradient", add_weight_decay_gradient);
}

}  // namespace gridencoder
