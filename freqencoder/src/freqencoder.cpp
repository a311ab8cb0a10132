// Registration of the operators and their CPU form.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <type_traits>

#include "freqencoder_checks.h"

namespace freqencoder {
namespace {

constexpr int64_t grain = 8192;  // columns worth waking another thread for

// Calls work(LANES, first, row, column) for the coordinates of the rows from begin to end, numbered through: LANES of them from number
// `first` on, whose columns begin at column[0], column[1], ... counted from the start of `row`.
template <typename Work>
void for_coordinates(int64_t begin, int64_t end, int dimensions, int columns, const Work& work) {
    constexpr int full = 16;  // two AVX-512 vectors of doubles
    int column[full];
    const auto group = [&](auto lanes, int64_t first) {
        const int64_t row = first / dimensions;
        int d = static_cast<int>(first - row * dimensions), start = 0;
        for (int lane = 0; lane < lanes(); ++lane) {
            column[lane] = start + d;
            if (++d == dimensions) d = 0, start += columns;
        }
        work(lanes, first, row, column);
    };
    int64_t first = begin * dimensions;
    for (; first + full <= end * dimensions; first += full) group(std::integral_constant<int, full>{}, first);
    for (; first < end * dimensions; ++first) group(std::integral_constant<int, 1>{}, first);
}

template <typename Value, typename Real>
void forward_loop(const Real* positions, int64_t rows, int dimensions, int degree, bool include_input, Value* output) {
    const int columns = columns_of_row(dimensions, degree, include_input);
    at::parallel_for(0, rows, 1 + grain / columns, [=](int64_t begin, int64_t end) {
        for_coordinates(begin, end, dimensions, columns, [=](auto lanes, int64_t first, int64_t row, const int* column) {
            encode<lanes()>(positions + first, column, dimensions, degree, include_input, output + row * columns);
        });
    });
}

template <typename Value, typename Real>
void backward_loop(const Value* grad, const Real* positions, int64_t rows, int dimensions, int degree, bool include_input, Real* gradient) {
    const int columns = columns_of_row(dimensions, degree, include_input);
    at::parallel_for(0, rows, 1 + grain / columns, [=](int64_t begin, int64_t end) {
        for_coordinates(begin, end, dimensions, columns, [=](auto lanes, int64_t first, int64_t row, const int* column) {
            encode_gradient<lanes()>(positions + first, column, dimensions, degree, include_input, grad + row * columns, gradient + first);
        });
    });
}

// Calls work(Value, Real) with null pointers of the type of the columns and of the type of the positions.
template <typename Work>
void for_dtypes(at::ScalarType columns, at::ScalarType positions, const Work& work) {
    if (positions == at::kDouble) work(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    else if (columns == at::kHalf) work(static_cast<at::Half*>(nullptr), static_cast<float*>(nullptr));
    else work(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
}

at::Tensor freq_encode_forward(const at::Tensor& positions, int64_t degree, bool include_input, at::ScalarType dtype) {
    check_positions(positions, degree);
    check_dtype("dtype", dtype, positions);
    const at::Tensor rows = positions.contiguous();
    at::Tensor output = at::empty({rows.size(0), columns_of(rows, degree, include_input)}, rows.options().dtype(dtype));
    for_dtypes(dtype, rows.scalar_type(), [&](auto* value, auto* real) {
        using Value = std::remove_pointer_t<decltype(value)>;
        using Real = std::remove_pointer_t<decltype(real)>;
        forward_loop(rows.const_data_ptr<Real>(), rows.size(0), rows.size(1), degree, include_input, output.mutable_data_ptr<Value>());
    });
    return output;
}

at::Tensor freq_encode_backward(const at::Tensor& grad, const at::Tensor& positions, int64_t degree, bool include_input) {
    check_grad(grad, positions, degree, include_input);
    const at::Tensor rows = positions.contiguous(), slopes = grad.contiguous();
    at::Tensor gradient = at::empty(rows.sizes(), rows.options());
    for_dtypes(slopes.scalar_type(), rows.scalar_type(), [&](auto* value, auto* real) {
        using Value = std::remove_pointer_t<decltype(value)>;
        using Real = std::remove_pointer_t<decltype(real)>;
        backward_loop(slopes.const_data_ptr<Value>(), rows.const_data_ptr<Real>(), rows.size(0), rows.size(1), degree, include_input,
                      gradient.mutable_data_ptr<Real>());
    });
    return gradient;
}

}  // namespace

TORCH_LIBRARY(freqencoder, library) {
    library.def("freq_encode_forward(Tensor positions, int degree, bool include_input, ScalarType dtype) -> Tensor");
    library.def("freq_encode_backward(Tensor grad, Tensor positions, int degree, bool include_input) -> Tensor");
}

TORCH_LIBRARY_IMPL(freqencoder, CPU, library) {
    library.impl("freq_encode_forward", freq_encode_forward);
    library.impl("freq_encode_backward", freq_encode_backward);
}

}  // namespace freqencoder
