// The networks of the Instant-NGP field (Mueller et al. 2022, section 4), widened to whole tiles:
//   geometry 32 -> 64 -> 64 -> 16: log density and 15 features;
//   colour 32 -> 32 -> 32 -> 16: its inputs are the 16 outputs of geometry, of which the first weighs nothing, and 16 spherical harmonics of the
//   direction; of its outputs 1, 2 and 3 are the colour logits, so that they stand where `raw` has them.
#pragma once

#include "../../shencoder/src/shencoder_math.h"
#include "matrices.cuh"

namespace fusedfield {

constexpr int ENCODED = 32, WIDE = 64, NARROW = 32, GEOMETRY = 16, VIEW = 16, OUTPUTS = 16;
constexpr int RAW = 4;  // columns of `raw`

struct NGPMatrices {
    Matrix geometry[3], colour[3];
    __half start;  // of the log density

    explicit NGPMatrices(const NGPWeights& weights)
        : geometry{{weights.geometry[0], WIDE, ENCODED, 0, 0}, {weights.geometry[1], WIDE, WIDE, 0, 0}, {weights.geometry[2], GEOMETRY, WIDE, 0, 0}},
          colour{{weights.colour[0], NARROW, GEOMETRY - 1 + VIEW, 0, 1}, {weights.colour[1], NARROW, NARROW, 0, 0}, {weights.colour[2], RAW - 1, NARROW, 1, 0}},
          start(__float2half_rn(weights.start)) {}
};

// Three matrices in shared memory, with ReLU between them.
template <int IN, int WIDTH, int OUT>
struct ThreeLayers {
    const __half *first, *second, *last;
    static constexpr int inputs = IN;
    static constexpr int size = stored_size<WIDTH, IN> + stored_size<WIDTH, WIDTH> + stored_size<OUT, WIDTH>;

    ThreeLayers() = default;
    __device__ ThreeLayers(const Matrix (&matrices)[3], __half* shared) : first(shared) {
        __half* const middle = load_matrix<WIDTH, IN>(matrices[0], shared);
        __half* const end = load_matrix<WIDTH, WIDTH>(matrices[1], middle);
        load_matrix<OUT, WIDTH>(matrices[2], end);
        second = middle;
        last = end;
    }

    template <int M>
    __device__ __forceinline__ void run(const Rows<IN> (&given)[M], Rows<WIDTH> (&hidden)[M], Rows<WIDTH> (&deeper)[M], Rows<OUT> (&outputs)[M]) const {
        multiply<IN, WIDTH, M, true>(given, first, hidden);
        multiply<WIDTH, WIDTH, M, true>(hidden, second, deeper);
        multiply<WIDTH, OUT, M, false>(deeper, last, outputs);
    }
};

using Geometry = ThreeLayers<ENCODED, WIDE, GEOMETRY>;
using Colour = ThreeLayers<GEOMETRY + VIEW, NARROW, OUTPUTS>;

// The colour network's inputs: the geometry's outputs, and the harmonics of each row's direction; `left` rows of the tiles are in use.
template <int M>
__device__ __forceinline__ void join_view(const Rows<GEOMETRY> (&geometry)[M], const float* directions, int left, Rows<Colour::inputs> (&joined)[M]) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int k = 0; k < 4; ++k) joined[m].at[0][k] = geometry[m].at[0][k];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = TILE * m + 8 * h + lane_row();
            float direction[3] = {}, columns[VIEW];
            if (row < left) {
#pragma unroll
                for (int d = 0; d < 3; ++d) direction[d] = directions[row * 3 + d];
            }
            shencoder::harmonics<4>(direction, columns);
#pragma unroll
            for (int k = 0; k < 2; ++k) {  // this lane's four of the sixteen, chosen without an indexed array
                float low = columns[8 * k], high = columns[8 * k + 1];
#pragma unroll
                for (int q = 1; q < 4; ++q) {
                    low = lane() % 4 == q ? columns[8 * k + 2 * q] : low;
                    high = lane() % 4 == q ? columns[8 * k + 2 * q + 1] : high;
                }
                joined[m].at[1][2 * k + h] = __floats2half2_rn(low, high);
            }
        }
    }
}

// Of the M tiles of rows, what the networks make of their features: log density (less its start) and colour logits in the first four columns.
template <int M>
__device__ __forceinline__ void run_networks(const Geometry& geometry, const Colour& colour, const Rows<ENCODED> (&encoding)[M], const float* directions, int left,
                                             Rows<OUTPUTS> (&outputs)[M]) {
    Rows<WIDE> hidden[M], deeper[M];
    Rows<GEOMETRY> geometric[M];
    geometry.run(encoding, hidden, deeper, geometric);
    Rows<Colour::inputs> joined[M];
    join_view(geometric, directions, left, joined);
    Rows<NARROW> thinner[M], thinnest[M];
    colour.run(joined, thinner, thinnest, outputs);
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h)
            if (lane() % 4 == 0) outputs[m].at[0][h] = __halves2half2(__low2half(geometric[m].at[0][h]), __high2half(outputs[m].at[0][h]));
}

}  // namespace fusedfield
