// Small matrix products of a warp on tensor cores: rows of samples in registers, matrices in shared memory.
//
// A lane is called (g, q), g = lane / 4 and q = lane % 4. Of a matrix [outputs, inputs], as torch.nn.Linear keeps it, a row in shared
// memory is `inputs + PAD` halves long, so that the eight rows that an ldmatrix reads lie in different banks.
#pragma once

#include "instructions.cuh"

namespace fusedfield {

constexpr int WARP = 32, WARPS = 8, THREADS = WARP * WARPS;  // a block
constexpr int PAD = 8;
constexpr int TILE = 16;  // rows and columns of the smallest product

__device__ __forceinline__ int lane() { return threadIdx.x % WARP; }
__device__ __forceinline__ int warp() { return threadIdx.x / WARP; }
__device__ __forceinline__ int lane_row() { return lane() / 4; }         // g
__device__ __forceinline__ int lane_column() { return 2 * (lane() % 4); }  // 2 q

// 16 rows of COLUMNS half numbers, spread over the lanes as the tensor cores read them: at[t][0 ... 3] holds columns 16 t + 2 q and the next of
// rows g and g + 8, then columns 16 t + 8 + 2 q and the next of rows g and g + 8.
template <int COLUMNS>
struct Rows {
    __half2 at[COLUMNS / TILE][4];
};

__device__ __forceinline__ uint32_t bits(__half2 pair) { return *reinterpret_cast<uint32_t*>(&pair); }

__device__ __forceinline__ void multiply_add(float (&sums)[4], const __half2 (&rows)[4], uint32_t low, uint32_t high) {
    const uint32_t words[4] = {bits(rows[0]), bits(rows[1]), bits(rows[2]), bits(rows[3])};
    multiply_add(sums, words, low, high);
}

// Where this lane's block row starts in a matrix of `stride` halves a row, for a pair of tiles that follow each other along rows or columns.
template <bool DOWN_FIRST>
__device__ __forceinline__ int block_offset(int stride) {
    const int first = lane() / 8 % 2 * 8, second = lane() / 16 * 8, row = lane() % 8;
    return DOWN_FIRST ? (first + row) * stride + second : (second + row) * stride + first;
}

// results = rows matrix^T, [16 M, OUT] from [16 M, IN] and a matrix [OUT, IN], rounded to half.
template <int IN, int OUT, int M, bool RELU>
__device__ __forceinline__ void multiply(const Rows<IN> (&rows)[M], const __half* matrix, Rows<OUT> (&results)[M]) {
    const __half* from = matrix + block_offset<false>(IN + PAD);
#pragma unroll
    for (int j = 0; j < OUT / TILE; ++j) {
        float sums[M][2][4] = {};
#pragma unroll
        for (int t = 0; t < IN / TILE; ++t) {
            uint32_t blocks[4];  // outputs 0 to 7: inputs 0 to 7, 8 to 15; outputs 8 to 15: likewise
            load_blocks<false>(from + j * TILE * (IN + PAD) + t * TILE, blocks);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                multiply_add(sums[m][0], rows[m].at[t], blocks[0], blocks[1]);
                multiply_add(sums[m][1], rows[m].at[t], blocks[2], blocks[3]);
            }
        }
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const __half2 pair = __floats2half2_rn(sums[m][k / 2][k % 2 * 2], sums[m][k / 2][k % 2 * 2 + 1]);
                results[m].at[j][k] = RELU ? __hmax2_nan(pair, __half2{}) : pair;  // NaN stays NaN, as in PyTorch
            }
    }
}

// results = rows matrix, [16, IN] from [16, OUT] and a matrix [OUT, IN]: the gradient at a layer's inputs from that at its outputs.
template <int OUT, int IN>
__device__ __forceinline__ void multiply_back(const Rows<OUT>& rows, const __half* matrix, Rows<IN>& results) {
    const __half* from = matrix + block_offset<true>(IN + PAD);
#pragma unroll
    for (int j = 0; j < IN / TILE; ++j) {
        float sums[2][4] = {};
#pragma unroll
        for (int t = 0; t < OUT / TILE; ++t) {
            uint32_t blocks[4];  // inputs 0 to 7: outputs 0 to 7, 8 to 15; inputs 8 to 15: likewise
            load_blocks<true>(from + t * TILE * (IN + PAD) + j * TILE, blocks);
            multiply_add(sums[0], rows.at[t], blocks[0], blocks[1]);
            multiply_add(sums[1], rows.at[t], blocks[2], blocks[3]);
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) results.at[j][k] = __floats2half2_rn(sums[k / 2][k % 2 * 2], sums[k / 2][k % 2 * 2 + 1]);
    }
}

// The gradient before a ReLU, from that behind it: zero where the activation is.
template <int COLUMNS>
__device__ __forceinline__ void back_through_relu(Rows<COLUMNS>& gradient, const Rows<COLUMNS>& activation) {
#pragma unroll
    for (int t = 0; t < COLUMNS / TILE; ++t)
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const uint32_t kept = bits(gradient.at[t][k]) & __hgtu2_mask(activation.at[t][k], __half2{});  // true for NaN, as in PyTorch
            gradient.at[t][k] = *reinterpret_cast<const __half2*>(&kept);
        }
}

// Writes 16 rows to shared memory, `stride` halves a row.
template <int COLUMNS>
__device__ __forceinline__ void store_rows(const Rows<COLUMNS>& rows, __half* to, int stride) {
#pragma unroll
    for (int t = 0; t < COLUMNS / TILE; ++t)
#pragma unroll
        for (int k = 0; k < 4; ++k)
            *reinterpret_cast<__half2*>(to + (lane_row() + k % 2 * 8) * stride + t * TILE + k / 2 * 8 + lane_column()) = rows.at[t][k];
}

// Reads them back, from where rows start at multiples of 16 bytes.
template <int COLUMNS>
__device__ __forceinline__ void load_rows(const __half* from, int stride, Rows<COLUMNS>& rows) {
    from += block_offset<true>(stride);
#pragma unroll
    for (int t = 0; t < COLUMNS / TILE; ++t) {
        uint32_t blocks[4];  // columns 0 to 7: rows 0 to 7, 8 to 15; columns 8 to 15: likewise
        load_blocks<false>(from + t * TILE, blocks);
#pragma unroll
        for (int k = 0; k < 4; ++k) rows.at[t][k] = *reinterpret_cast<const __half2*>(&blocks[k]);
    }
}

// A 16 x 16 tile of a matrix's gradient, spread over the lanes of a warp: at[n][0 ... 3] holds columns 8 n + 2 q and the next of row g, then of g + 8.
struct Tile {
    float at[2][4] = {};

    // += gradient^T activation over ROWS rows in shared memory; both start at the tile's own columns.
    template <int ROWS>
    __device__ __forceinline__ void add(const __half* gradient, int gradient_stride, const __half* activation, int activation_stride) {
        const __half* const down = gradient + block_offset<false>(gradient_stride);
        const __half* const across = activation + block_offset<true>(activation_stride);
#pragma unroll
        for (int k = 0; k < ROWS; k += TILE) {
            uint32_t a[4], b[4];
            load_blocks<true>(down + k * gradient_stride, a);
            load_blocks<true>(across + k * activation_stride, b);
            multiply_add(at[0], a, b[0], b[1]);
            multiply_add(at[1], a, b[2], b[3]);
        }
    }
};

}  // namespace fusedfield
