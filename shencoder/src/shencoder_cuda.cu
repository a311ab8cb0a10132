// CUDA kernels of the spherical-harmonics encoding. A thread handles one direction, but its columns lie apart from its neighbours'; so the
// rows of a block pass through shared memory, and global memory is read and written in order, whatever the degree.
#include "shencoder_cuda.h"
#include "shencoder_math.h"

namespace shencoder {
namespace {

constexpr int threads = 128;  // of a block, which handles as many rows

// Rows in shared memory: columns enough for a gradient too, an odd number of them so that the threads' rows begin in different banks.
template <int DEGREE>
constexpr int stride = (DEGREE * DEGREE < 3 ? 3 : DEGREE * DEGREE) | 1;

// Where element j of a block's packed rows lies in the tile.
template <int COLUMNS, int STRIDE>
__device__ __forceinline__ unsigned place(unsigned j) {
    return j / COLUMNS * STRIDE + j % COLUMNS;
}

// Copies the tile's rows to packed global memory; a thread moves four bytes at a time.
template <int COLUMNS, int STRIDE>
__device__ __forceinline__ void store_rows(const float* tile, unsigned rows, float* output) {
    for (unsigned j = threadIdx.x; j < rows * COLUMNS; j += threads) output[j] = tile[place<COLUMNS, STRIDE>(j)];
}

template <int COLUMNS, int STRIDE>
__device__ __forceinline__ void store_rows(const float* tile, unsigned rows, __half* output) {
    const unsigned total = rows * COLUMNS;
    for (unsigned j = 2 * threadIdx.x; j < total; j += 2 * threads) {
        const float first = tile[place<COLUMNS, STRIDE>(j)];
        if (j + 1 < total) *reinterpret_cast<__half2*>(output + j) = __floats2half2_rn(first, tile[place<COLUMNS, STRIDE>(j + 1)]);
        else output[j] = __float2half_rn(first);
    }
}

// The reverse.
template <int COLUMNS, int STRIDE>
__device__ __forceinline__ void load_rows(const float* __restrict__ input, unsigned rows, float* tile) {
    for (unsigned j = threadIdx.x; j < rows * COLUMNS; j += threads) tile[place<COLUMNS, STRIDE>(j)] = input[j];
}

template <int COLUMNS, int STRIDE>
__device__ __forceinline__ void load_rows(const __half* __restrict__ input, unsigned rows, float* tile) {
    const unsigned total = rows * COLUMNS;
    for (unsigned j = 2 * threadIdx.x; j < total; j += 2 * threads) {
        if (j + 1 < total) {
            const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(input + j));
            tile[place<COLUMNS, STRIDE>(j)] = pair.x;
            tile[place<COLUMNS, STRIDE>(j + 1)] = pair.y;
        } else {
            tile[place<COLUMNS, STRIDE>(j)] = __half2float(input[j]);
        }
    }
}

__device__ __forceinline__ unsigned rows_of_block(int64_t first, int64_t rows) {
    return static_cast<unsigned>(rows - first < threads ? rows - first : threads);
}

template <int DEGREE, typename Value>
__global__ void __launch_bounds__(threads) forward_kernel(const float* __restrict__ directions, int64_t rows, Value* __restrict__ output) {
    __shared__ float tile[threads * stride<DEGREE>];
    const int64_t first = static_cast<int64_t>(blockIdx.x) * threads;
    const unsigned count = rows_of_block(first, rows), row = threadIdx.x;
    if (row < count) harmonics<DEGREE>(directions + 3 * (first + row), tile + row * stride<DEGREE>);
    __syncthreads();
    store_rows<DEGREE * DEGREE, stride<DEGREE>>(tile, count, output + first * (DEGREE * DEGREE));
}

template <int DEGREE, typename Value>
__global__ void __launch_bounds__(threads)
    backward_kernel(const Value* __restrict__ grad, const float* __restrict__ directions, int64_t rows, float* __restrict__ gradient) {
    __shared__ float tile[threads * stride<DEGREE>];
    const int64_t first = static_cast<int64_t>(blockIdx.x) * threads;
    const unsigned count = rows_of_block(first, rows), row = threadIdx.x;
    load_rows<DEGREE * DEGREE, stride<DEGREE>>(grad + first * (DEGREE * DEGREE), count, tile);
    __syncthreads();
    float* own = tile + row * stride<DEGREE>;  // from here to the next barrier each thread touches its own row alone
    if (row < count) harmonics_gradient<DEGREE>(directions + 3 * (first + row), own, own);
    __syncthreads();
    store_rows<3, stride<DEGREE>>(tile, count, gradient + 3 * first);
}

// The grid holds 2^31 blocks, more rows than any buffer has.
unsigned blocks_for(int64_t rows) { return static_cast<unsigned>((rows + threads - 1) / threads); }

}  // namespace

template <typename Value>
cudaError_t launch_forward(const float* directions, int64_t rows, int64_t degree, Value* output, cudaStream_t stream) {
    if (rows == 0) return cudaSuccess;
    return for_degree(degree, [&](auto d) {
        forward_kernel<d(), Value><<<blocks_for(rows), threads, 0, stream>>>(directions, rows, output);
        return cudaGetLastError();
    });
}

template <typename Value>
cudaError_t launch_backward(const Value* grad, const float* directions, int64_t rows, int64_t degree, float* gradient,
                            cudaStream_t stream) {
    if (rows == 0) return cudaSuccess;
    return for_degree(degree, [&](auto d) {
        backward_kernel<d(), Value><<<blocks_for(rows), threads, 0, stream>>>(grad, directions, rows, gradient);
        return cudaGetLastError();
    });
}

template cudaError_t launch_forward(const float*, int64_t, int64_t, float*, cudaStream_t);
template cudaError_t launch_forward(const float*, int64_t, int64_t, __half*, cudaStream_t);
template cudaError_t launch_backward(const float*, const float*, int64_t, int64_t, float*, cudaStream_t);
template cudaError_t launch_backward(const __half*, const float*, int64_t, int64_t, float*, cudaStream_t);

}  // namespace shencoder
