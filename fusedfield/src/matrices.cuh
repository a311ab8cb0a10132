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

// By all threads of the block; returns where the next one goes.
template <int OUT, int IN>
__device__ __half* load_matrix(const Matrix& matrix, __half* to) {
    for (int i = threadIdx.x; i < OUT * IN; i += THREADS) {
        const int output = i / IN, input = i % IN, index = matrix.index(output, input);
        to[output * (IN + PAD) + input] = index >= 0 ? __float2half_rn(matrix.values[index]) : __half{};
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
