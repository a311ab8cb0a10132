// The CUDA form of the operators: checks, results, pointers, the current stream; the kernels are in the .cu files.
#include "gridencoder_cuda.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "gridencoder_checks.h"

namespace gridencoder {
namespace {

// The tensor itself, or a copy where its rows are not contiguous or not aligned to the vector loads of the kernels.
at::Tensor aligned_rows(const at::Tensor& tensor, int64_t features) {
    const at::Tensor rows = tensor.contiguous();
    const bool aligned = reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % (features * rows.element_size()) == 0;
    return aligned ? rows : rows.clone();
}

Grid grid_of(const at::Tensor& offsets, const at::Tensor& resolutions, const Shape& shape, Options options) {
    return {offsets.const_data_ptr<int32_t>(), resolutions.const_data_ptr<int32_t>(), shape.entries, static_cast<int>(shape.levels),
            options};
}

// Calls work with a null pointer of the kernels' type for `dtype`.
template <typename Work>
void for_dtype(at::ScalarType dtype, const Work& work) {
    if (dtype == at::kHalf) work(static_cast<__half*>(nullptr));
    else work(static_cast<float*>(nullptr));
}

at::Tensor grid_encode_forward(const at::Tensor& positions, const at::Tensor& table, const at::Tensor& offsets,
                               const at::Tensor& resolutions, std::string_view gridtype, std::string_view interpolation,
                               bool align_corners) {
    const Shape shape = check_forward(positions, table, offsets, resolutions);
    const Grid grid = grid_of(offsets, resolutions, shape, check_options(gridtype, interpolation, align_corners));
    const c10::cuda::CUDAGuard guard(positions.device());
    const at::Tensor p = positions.contiguous(), t = aligned_rows(table, shape.features);
    at::Tensor output = at::empty({shape.samples, shape.levels * shape.features}, table.options());
    for_dtype(table.scalar_type(), [&](auto* type) {
        using Value = std::remove_pointer_t<decltype(type)>;
        for_shape(shape, [&](auto d, auto f) {
            C10_CUDA_CHECK((launch_forward<d(), f()>(p.const_data_ptr<float>(), static_cast<const Value*>(t.const_data_ptr()), grid,
                                                     shape.samples, static_cast<Value*>(output.mutable_data_ptr()),
                                                     c10::cuda::getCurrentCUDAStream())));
        });
    });
    return output;
}

void add_grid_encode_gradient(const at::Tensor& gradient, const at::Tensor& grad, const at::Tensor& positions, const at::Tensor& offsets,
                              const at::Tensor& resolutions, std::string_view gridtype, std::string_view interpolation,
                              bool align_corners) {
    const Shape shape = check_add_gradient(gradient, grad, positions, offsets, resolutions);
    const bool aligned = reinterpret_cast<uintptr_t>(gradient.const_data_ptr()) % (4 * sizeof(float)) == 0;
    TORCH_CHECK_VALUE(aligned, "gradient must start at a multiple of 16 bytes, since four numbers are added at once");
    const Grid grid = grid_of(offsets, resolutions, shape, check_options(gridtype, interpolation, align_corners));
    const c10::cuda::CUDAGuard guard(positions.device());
    const at::Tensor p = positions.contiguous(), g = aligned_rows(grad, shape.features);
    for_dtype(grad.scalar_type(), [&](auto* type) {
        using Value = std::remove_pointer_t<decltype(type)>;
        for_shape(shape, [&](auto d, auto f) {
            C10_CUDA_CHECK((launch_backward<d(), f()>(static_cast<const Value*>(g.const_data_ptr()), p.const_data_ptr<float>(), grid,
                                                      shape.samples, gradient.mutable_data_ptr<float>(),
                                                      c10::cuda::getCurrentCUDAStream())));
        });
    });
}

at::Tensor grid_encode_backward(const at::Tensor& grad, const at::Tensor& positions, const at::Tensor& offsets,
                                const at::Tensor& resolutions, int64_t entries, int64_t features, std::string_view gridtype,
                                std::string_view interpolation, bool align_corners) {
    const c10::cuda::CUDAGuard guard(positions.device());
    at::Tensor gradient = zero_gradient(positions, entries, features);
    add_grid_encode_gradient(gradient, grad, positions, offsets, resolutions, gridtype, interpolation, align_corners);
    return gradient;
}

at::Tensor grid_encode_backward_positions(const at::Tensor& grad, const at::Tensor& positions, const at::Tensor& table,
                                          const at::Tensor& offsets, const at::Tensor& resolutions, std::string_view gridtype,
                                          std::string_view interpolation, bool align_corners) {
    const Shape shape = check_backward_positions(grad, positions, table, offsets, resolutions);
    const Grid grid = grid_of(offsets, resolutions, shape, check_options(gridtype, interpolation, align_corners));
    const c10::cuda::CUDAGuard guard(positions.device());
    const at::Tensor g = aligned_rows(grad, shape.features), p = positions.contiguous(), t = aligned_rows(table, shape.features);
    at::Tensor result = at::empty({shape.samples, shape.dimensions}, positions.options());
    for_dtype(table.scalar_type(), [&](auto* type) {
        using Value = std::remove_pointer_t<decltype(type)>;
        for_shape(shape, [&](auto d, auto f) {
            C10_CUDA_CHECK((launch_backward_positions<d(), f()>(
                static_cast<const Value*>(g.const_data_ptr()), p.const_data_ptr<float>(), static_cast<const Value*>(t.const_data_ptr()),
                grid, shape.samples, result.mutable_data_ptr<float>(), c10::cuda::getCurrentCUDAStream())));
        });
    });
    return result;
}

void add_total_variation_gradient(const at::Tensor& table, const at::Tensor& gradient, const at::Tensor& offsets,
                                  const at::Tensor& resolutions, const at::Tensor& positions, const at::Tensor& weight,
                                  std::string_view gridtype, bool align_corners) {
    const Shape shape = check_total_variation(table, gradient, offsets, resolutions, positions, weight);
    const Grid grid = grid_of(offsets, resolutions, shape, check_options(gridtype, "linear", align_corners));
    const c10::cuda::CUDAGuard guard(table.device());
    const at::Tensor p = positions.contiguous(), t = table.contiguous();
    for_shape(shape, [&](auto d, auto f) {
        C10_CUDA_CHECK((launch_total_variation<d(), f()>(t.const_data_ptr<float>(), grid, p.const_data_ptr<float>(),
                                                         shape.samples, weight.const_data_ptr<float>(),
                                                         gradient.mutable_data_ptr<float>(), c10::cuda::getCurrentCUDAStream())));
    });
}

void add_weight_decay_gradient(const at::Tensor& table, const at::Tensor& gradient, const at::Tensor& offsets, const at::Tensor& weight) {
    const Shape shape = check_weight_decay(table, gradient, offsets, weight);
    const c10::cuda::CUDAGuard guard(table.device());
    const at::Tensor t = table.contiguous();
    C10_CUDA_CHECK(launch_weight_decay(t.const_data_ptr<float>(), offsets.const_data_ptr<int32_t>(), static_cast<int>(shape.levels),
                                       shape.entries, static_cast<int>(shape.features), weight.const_data_ptr<float>(),
                                       gradient.mutable_data_ptr<float>(), c10::cuda::getCurrentCUDAStream()));
}

}  // namespace

TORCH_LIBRARY_IMPL(gridencoder, CUDA, library) {
    library.impl("grid_encode_forward", grid_encode_forward);
    library.impl("add_grid_encode_gradient", add_grid_encode_gradient);
    library.impl("grid_encode_backward", grid_encode_backward);
    library.impl("grid_encode_backward_positions", grid_encode_backward_positions);
    library.impl("add_total_variation_gradient", add_total_variation_gradient);
    library.impl("add_weight_decay_gradient", add_weight_decay_gradient);
}

}  // namespace gridencoder
