// CUDA kernels of the frequency encoding. A thread handles one coordinate, but its columns lie apart from its neighbours'; so the rows of a
// block pass through shared memory, where they lie packed as in global memory, which is read and written in order.
#include "freqencoder_cuda.h"
#include "freqencoder_math.h"

namespace freqencoder {
namespace {

constexpr int threads = 256;            // of a block; at most as many coordinates
constexpr int tile_bytes = 32 * 1024;  // of shared memory for a block: less than any GPU's limit, and few enough for several at once
static_assert(2 * max_dimensions <= threads && 2 * max_dimensions * (2 * max_degree + 1) * sizeof(float) <= tile_bytes,
              "a block holds at least two rows");

// Rows of a block: an even number, so that every block's part of the columns begins on a boundary of 4 bytes in half too.
int rows_of_block(const Layout& layout) {
    const int columns = columns_of_row(layout.dimensions, layout.degree, layout.include_input);
    const int by_threads = threads / layout.dimensions, by_memory = tile_bytes / static_cast<int>(columns * sizeof(float));
    return (by_threads < by_memory ? by_threads : by_memory) & ~1;
}

// Copies the packed tile to global memory; a thread moves four bytes at a time.
__device__ __forceinline__ void store(const float* tile, int total, float* output) {
    for (int j = threadIdx.x; j < total; j += threads) output[j] = tile[j];
}

__device__ __forceinline__ void store(const float* tile, int total, __half* output) {
    for (int j = 2 * threadIdx.x; j < total; j += 2 * threads) {
        if (j + 1 < total) *reinterpret_cast<__half2*>(output + j) = __floats2half2_rn(tile[j], tile[j + 1]);
        else output[j] = __float2half_rn(tile[j]);
    }
}

// The reverse.
__device__ __forceinline__ void load(const float* __restrict__ input, int total, float* tile) {
    for (int j = threadIdx.x; j < total; j += threads) tile[j] = input[j];
}

__device__ __forceinline__ void load(const __half* __restrict__ input, int total, float* tile) {
    for (int j = 2 * threadIdx.x; j < total; j += 2 * threads) {
        if (j + 1 < total) {
            const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(input + j));
            tile[j] = pair.x;
            tile[j + 1] = pair.y;
        } else {
            tile[j] = __half2float(input[j]);
        }
    }
}

// What a block and its thread handle: `count` rows from row `first` on, and of them coordinate `own`, whose columns begin at `column`.
struct Share {
    int64_t first;
    int columns, count, own, column;
    bool busy;

    __device__ __forceinline__ Share(int64_t rows, int block_rows, const Layout& layout) {
        first = static_cast<int64_t>(blockIdx.x) * block_rows;
        columns = columns_of_row(layout.dimensions, layout.degree, layout.include_input);
        count = static_cast<int>(rows - first < block_rows ? rows - first : block_rows);
        own = threadIdx.x;
        busy = own < count * layout.dimensions;
        const int row = own / layout.dimensions;
        column = row * columns + own - row * layout.dimensions;
    }
};

template <typename Value>
__global__ void __launch_bounds__(threads)
    forward_kernel(const float* __restrict__ positions, int64_t rows, int block_rows, Layout layout, Value* __restrict__ output) {
    extern __shared__ float tile[];
    const Share share(rows, block_rows, layout);
    if (share.busy) {
        const float* x = positions + share.first * layout.dimensions + share.own;
        encode<1>(x, &share.column, layout.dimensions, layout.degree, layout.include_input, tile);
    }
    __syncthreads();
    store(tile, share.count * share.columns, output + share.first * share.columns);
}

template <typename Value>
__global__ void __launch_bounds__(threads)
    backward_kernel(const Value* __restrict__ grad, const float* __restrict__ positions, int64_t rows, int block_rows, Layout layout,
                    float* __restrict__ gradient) {
    extern __shared__ float tile[];
    const Share share(rows, block_rows, layout);
    load(grad + share.first * share.columns, share.count * share.columns, tile);
    __syncthreads();
    if (!share.busy) return;
    const int64_t i = share.first * layout.dimensions + share.own;
    encode_gradient<1>(positions + i, &share.column, layout.dimensions, layout.degree, layout.include_input, tile, gradient + i);
}

// The grid holds 2^31 blocks, more rows than any buffer has.
unsigned blocks_for(int64_t rows, int block_rows) { return static_cast<unsigned>((rows + block_rows - 1) / block_rows); }

size_t bytes_for(int block_rows, const Layout& layout) {
    return block_rows * columns_of_row(layout.dimensions, layout.degree, layout.include_input) * sizeof(float);
}

}  // namespace

template <typename Value>
cudaError_t launch_forward(const float* positions, int64_t rows, Layout layout, Value* output, cudaStream_t stream) {
    if (rows == 0) return cudaSuccess;
    const int block_rows = rows_of_block(layout);
    forward_kernel<<<blocks_for(rows, block_rows), threads, bytes_for(block_rows, layout), stream>>>(positions, rows, block_rows, layout,
                                                                                                    output);
    return cudaGetLastError();
}

template <typename Value>
cudaError_t launch_backward(const Value* grad, const float* positions, int64_t rows, Layout layout, float* gradient, cudaStream_t stream) {
    if (rows == 0) return cudaSuccess;
    const int block_rows = rows_of_block(layout);
    backward_kernel<<<blocks_for(rows, block_rows), threads, bytes_for(block_rows, layout), stream>>>(grad, positions, rows, block_rows,
                                                                                                     layout, gradient);
    return cudaGetLastError();
}

template cudaError_t launch_forward(const float*, int64_t, Layout, float*, cudaStream_t);
template cudaError_t launch_forward(const float*, int64_t, Layout, __half*, cudaStream_t);
template cudaError_t launch_backward(const float*, const float*, int64_t, Layout, float*, cudaStream_t);
template cudaError_t launch_backward(const __half*, const float*, int64_t, Layout, float*, cudaStream_t);

}  // namespace freqencoder
