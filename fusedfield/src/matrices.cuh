// The matrices of a network: from float in device memory to half in shared memory, widened by zeros to whole tiles, and their gradients back.
#pragma once

#include "tile.cuh"

namespace fusedfield {

// A matrix [outputs, inputs] and where it lies in the widened one.
struct Matrix {
    const float* values;
    int outputs, inputs;
    int first_output, first_input;

    __device__ int index(int output, int input) const {  // -1: not in the matrix
        const int row = output - first_output, column = input - first_input;
        return row >= 0 && row < outputs && column >= 0 && column < inputs ? row * inputs + column : -1;
    }
};

template <int OUT, int IN>
constexpr int stored_size = OUT * (IN + PAD);  // halves

// By all threads of the block, each of which asks for AT_ONCE numbers before it waits for the first; returns where the next matrix goes.
template <int OUT, int IN>
__device__ __half* load_matrix(const Matrix& matrix, __half* to) {
    constexpr int AT_ONCE = OUT * IN / THREADS < 8 ? OUT * IN / THREADS : 8;
    static_assert(OUT * IN % (AT_ONCE * THREADS) == 0);
#pragma unroll 1
    for (int start = threadIdx.x; start < OUT * IN; start += AT_ONCE * THREADS) {
        float values[AT_ONCE];
#pragma unroll
        for (int n = 0; n < AT_ONCE; ++n) {
            const int i = start + n * THREADS, index = matrix.index(i / IN, i % IN);
            values[n] = index >= 0 ? matrix.values[index] : 0.0f;
        }
#pragma unroll
        for (int n = 0; n < AT_ONCE; ++n) {
            const int i = start + n * THREADS;
            to[i / IN * (IN + PAD) + i % IN] = __float2half_rn(values[n]);
        }
    }
    return to + stored_size<OUT, IN>;
}

// Adds the tile that starts at (output, input) of the widened matrix to the gradient of the matrix.
template <typename Add>
__device__ void for_tile(const Tile& tile, const Matrix& matrix, int output, int input, const Add& add) {
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int index = matrix.index(output + lane_row() + e / 2 * 8, input + 8 * n + lane_column() + e % 2);
            if (index >= 0) add(index, tile.at[n][e]);
        }
}

}  // namespace fusedfield
