// Registration of the operators and their CPU form.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "shencoder_checks.h"
#include "shencoder_math.h"

namespace shencoder {
namespace {

constexpr int64_t grain = 1024;  // rows worth waking another thread for

template <int DEGREE, typename Value, typename Real>
void forward_loop(const Real* directions, int64_t rows, Value* output) {
    constexpr int columns = DEGREE * DEGREE;
    at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            Real result[columns];
            harmonics<DEGREE>(directions + 3 * i, result);
            for (int k = 0; k < columns; ++k) output[i * columns + k] = static_cast<Value>(result[k]);
        }
    });
}

template <int DEGREE, typename Value, typename Real>
void backward_loop(const Value* grad, const Real* directions, int64_t rows, Real* gradient) {
    constexpr int columns = DEGREE * DEGREE;
    at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            Real slope[columns];
            for (int k = 0; k < columns; ++k) slope[k] = static_cast<Real>(grad[i * columns + k]);
            harmonics_gradient<DEGREE>(directions + 3 * i, slope, gradient + 3 * i);
        }
    });
}

// Calls work(Value, Real) with null pointers of the type of the columns and of the type of the directions.
template <typename Work>
void for_dtypes(at::ScalarType columns, at::ScalarType directions, const Work& work) {
    if (directions == at::kDouble) work(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    else if (columns == at::kHalf) work(static_cast<at::Half*>(nullptr), static_cast<float*>(nullptr));
    else work(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
}

at::Tensor sh_encode_forward(const at::Tensor& directions, int64_t degree, at::ScalarType dtype) {
    check_directions(directions, degree);
    check_dtype("dtype", dtype, directions);
    const at::Tensor rows = directions.contiguous();
    at::Tensor output = at::empty({rows.size(0), degree * degree}, rows.options().dtype(dtype));
    for_dtypes(dtype, rows.scalar_type(), [&](auto* value, auto* real) {
        using Value = std::remove_pointer_t<decltype(value)>;
        using Real = std::remove_pointer_t<decltype(real)>;
        for_degree(degree, [&](auto d) { forward_loop<d()>(rows.const_data_ptr<Real>(), rows.size(0), output.mutable_data_ptr<Value>()); });
    });
    return output;
}

at::Tensor sh_encode_backward(const at::Tensor& grad, const at::Tensor& directions, int64_t degree) {
    check_grad(grad, directions, degree);
    const at::Tensor rows = directions.contiguous(), slopes = grad.contiguous();
    at::Tensor gradient = at::empty({rows.size(0), 3}, rows.options());
    for_dtypes(slopes.scalar_type(), rows.scalar_type(), [&](auto* value, auto* real) {
        using Value = std::remove_pointer_t<decltype(value)>;
        using Real = std::remove_pointer_t<decltype(real)>;
        for_degree(degree, [&](auto d) {
            backward_loop<d()>(slopes.const_data_ptr<Value>(), rows.const_data_ptr<Real>(), rows.size(0),
                               gradient.mutable_data_ptr<Real>());
        });
    });
    return gradient;
}

}  // namespace

TORCH_LIBRARY(shencoder, library) {
    library.def("sh_encode_forward(Tensor directions, int degree, ScalarType dtype) -> Tensor");
    library.def("sh_encode_backward(Tensor grad, Tensor directions, int degree) -> Tensor");
}

TORCH_LIBRARY_IMPL(shencoder, CPU, library) {
    library.impl("sh_encode_forward", sh_encode_forward);
    library.impl("sh_encode_backward", sh_encode_backward);
}

}  // namespace shencoder
