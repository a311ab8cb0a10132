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

    explicit NGPMatrices(const NGPWeights& weights)
        : geometry{{weights.geometry[0], WIDE, ENCODED, 0, 0}, {weights.geometry[1], WIDE, WIDE, 0, 0}, {weights.geometry[2], GEOMETRY, WIDE, 0, 0}},
          colour{{weights.colour[0], NARROW, GEOMETRY - 1 + VIEW, 0, 1}, {weights.colour[1], NARROW, NARROW, 0, 0}, {weights.colour[2], RAW - 1, NARROW, 1, 0}} {}
};

// The geometry's matrices in shared memory.
struct Geometry {
    const __half *first, *second, *last;
    static constexpr int size = stored_size<WIDE, ENCODED> + stored_size<WIDE, WIDE> + stored_size<GEOMETRY, WIDE>;

    __device__ Geometry(const NGPMatrices& matrices, __half* shared) : first(shared) {
        __half* const middle = load_matrix<WIDE, ENCODED>(matrices.geometry[0], shared);
        __half* const end = load_matrix<WIDE, WIDE>(matrices.geometry[1], middle);
        load_matrix<GEOMETRY, WIDE>(matrices.geometry[2], end);
        second = middle;
        last = end;
    }

    template <int M>
    __device__ __forceinline__ void run(const Rows<ENCODED> (&encoding)[M], Rows<WIDE> (&hidden)[M], Rows<WIDE> (&deeper)[M], Rows<GEOMETRY> (&outputs)[M]) const {
        multiply<ENCODED, WIDE, M, true>(encoding, first, hidden);
        multiply<WIDE, WIDE, M, true>(hidden, second, deeper);
        multiply<WIDE, GEOMETRY, M, false>(deeper, last, outputs);
    }
};

struct Colour {
    const __half *first, *second, *last;
    static constexpr int inputs = GEOMETRY + VIEW;
    static constexpr int size = stored_size<NARROW, inputs> + stored_size<NARROW, NARROW> + stored_size<OUTPUTS, NARROW>;

    Colour() = default;
    __device__ Colour(const NGPMatrices& matrices, __half* shared) : first(shared) {
        __half* const middle = load_matrix<NARROW, inputs>(matrices.colour[0], shared);
        __half* const end = load_matrix<NARROW, NARROW>(matrices.colour[1], middle);
        load_matrix<OUTPUTS, NARROW>(matrices.colour[2], end);
        second = middle;
        last = end;
    }

    template <int M>
    __device__ __forceinline__ void run(const Rows<inputs> (&given)[M], Rows<NARROW> (&hidden)[M], Rows<NARROW> (&deeper)[M], Rows<OUTPUTS> (&outputs)[M]) const {
        multiply<inputs, NARROW, M, true>(given, first, hidden);
        multiply<NARROW, NARROW, M, true>(hidden, second, deeper);
        multiply<NARROW, OUTPUTS, M, false>(deeper, last, outputs);
    }
};

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

}  // namespace fusedfield
