// CUDA kernels of the spherical-harmonics encoding: a thread handles one direction and reads or writes its row of columns at once, so
// that every 32-byte sector of memory is touched by a single instruction.
#include "shencoder_cuda.h"
#include "shencoder_math.h"

namespace shencoder {
namespace {

constexpr int threads = 256;

// The columns of one row. Rows of 1, 4 or 16 columns are moved by vector instructions of up to 16 bytes; rows of 9 one by one.
template <int DEGREE, typename Value>
struct Row {
    static constexpr int columns = DEGREE * DEGREE;
    static constexpr int bytes = columns * static_cast<int>(sizeof(Value));
    static constexpr int alignment = columns == 9 ? static_cast<int>(sizeof(Value)) : bytes < 16 ? bytes : 16;
    alignas(alignment) Value at[columns];
};

template <int DEGREE, typename Value>
__global__ void __launch_bounds__(threads)
    forward_kernel(const float* __restrict__ directions, int64_t rows, Row<DEGREE, Value>* __restrict__ output) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
    if (i >= rows) return;
    const float direction[3] = {directions[3 * i], directions[3 * i + 1], directions[3 * i + 2]};
    float result[DEGREE * DEGREE];
    harmonics<DEGREE>(direction, result);
    Row<DEGREE, Value> row;
#pragma unroll
    for (int k = 0; k < DEGREE * DEGREE; ++k) row.at[k] = static_cast<Value>(result[k]);
    output[i] = row;
}

template <int DEGREE, typename Value>
__global__ void __launch_bounds__(threads)
    backward_kernel(const Row<DEGREE, Value>* __restrict__ grad, const float* __restrict__ directions, int64_t rows,
                    float* __restrict__ gradient) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
    if (i >= rows) return;
    const float direction[3] = {directions[3 * i], directions[3 * i + 1], directions[3 * i + 2]};
    const Row<DEGREE, Value> row = grad[i];
    float slope[DEGREE * DEGREE], result[3];
#pragma unroll
    for (int k = 0; k < DEGREE * DEGREE; ++k) slope[k] = static_cast<float>(row.at[k]);
    harmonics_gradient<DEGREE>(direction, slope, result);
#pragma unroll
    for (int d = 0; d < 3; ++d) gradient[3 * i + d] = result[d];
}

unsigned blocks_for(int64_t rows) { return static_cast<unsigned>((rows + threads - 1) / threads); }

}  // namespace

template <int DEGREE, typename Value>
cudaError_t launch_forward(const float* directions, int64_t rows, Value* output, cudaStream_t stream) {
    if (rows == 0) return cudaSuccess;
    forward_kernel<DEGREE, Value>
        <<<blocks_for(rows), threads, 0, stream>>>(directions, rows, reinterpret_cast<Row<DEGREE, Value>*>(output));
    return cudaGetLastError();
}

template <int DEGREE, typename Value>
cudaError_t launch_backward(const Value* grad, const float* directions, int64_t rows, float* gradient, cudaStream_t stream) {
    if (rows == 0) return cudaSuccess;
    backward_kernel<DEGREE, Value>
        <<<blocks_for(rows), threads, 0, stream>>>(reinterpret_cast<const Row<DEGREE, Value>*>(grad), directions, rows, gradient);
    return cudaGetLastError();
}

#define INSTANTIATE_VALUE(DEGREE, VALUE)                                                             \
    template cudaError_t launch_forward<DEGREE, VALUE>(const float*, int64_t, VALUE*, cudaStream_t); \
    template cudaError_t launch_backward<DEGREE, VALUE>(const VALUE*, const float*, int64_t, float*, cudaStream_t);
#define INSTANTIATE(DEGREE)          \
    INSTANTIATE_VALUE(DEGREE, float) \
    INSTANTIATE_VALUE(DEGREE, __half)

INSTANTIATE(1)
INSTANTIATE(2)
INSTANTIATE(3)
INSTANTIATE(4)

}  // namespace shencoder
