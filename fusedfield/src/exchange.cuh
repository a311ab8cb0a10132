// Gradients of matrices, which sum over samples. A block takes 128 samples, 16 a warp; all warps put activations and gradients of a layer into shared
// memory, and each sums its own tiles of the matrix over the whole block's samples; sums stay in registers until the block has no more.
#pragma once

#include "tile.cuh"

namespace fusedfield {

constexpr int ROWS = WARPS * TILE;  // a block's

// Of layers at most WIDTH wide. Two of each, so that a layer's are written while others still read those of the layer before.
template <int WIDTH>
struct Exchange {
    __half gradient[2][ROWS * (WIDTH + PAD)];
    __half activation[2][ROWS * (WIDTH + PAD)];
};

// Puts this warp's rows of a layer where all warps see them and waits for the others'; then work(add), where add(tile, m, n) adds the block's rows to
// a tile of the matrix's gradient. `turn` alternates from layer to layer.
template <int WIDTH, int OUT, int IN, typename Work>
__device__ __forceinline__ void share(Exchange<WIDTH>& exchange, int turn, const Rows<OUT>& gradient, const Rows<IN>& activation, const Work& work) {
    __half* const down = exchange.gradient[turn % 2];
    __half* const across = exchange.activation[turn % 2];
    store_rows(gradient, down + warp() * TILE * (OUT + PAD), OUT + PAD);
    store_rows(activation, across + warp() * TILE * (IN + PAD), IN + PAD);
    __syncthreads();
    work([&](Tile& tile, int m, int n) { tile.template add<ROWS>(down + m * TILE, OUT + PAD, across + n * TILE, IN + PAD); });
}

// To device memory, the first `there` of the rows.
template <int COLUMNS>
__device__ __forceinline__ void write_rows(const Rows<COLUMNS>& rows, __half* to, int there) {
#pragma unroll
    for (int t = 0; t < COLUMNS / TILE; ++t)
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const int row = lane_row() + k % 2 * 8;
            if (row < there) *reinterpret_cast<__half2*>(to + row * COLUMNS + t * TILE + k / 2 * 8 + lane_column()) = rows.at[t][k];
        }
}

}  // namespace fusedfield
