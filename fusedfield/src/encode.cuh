// The inputs of a network in registers: grid features of 16 rows, read from memory or gathered from the grid here and now.
#pragma once

#include <cuda_fp16.h>

#include "../../gridencoder/src/gridencoder_math.h"
#include "fusedfield_cuda.h"
#include "tile.cuh"

namespace fusedfield {

constexpr int FEATURES = 2;  // an entry

template <typename Value>
struct alignas(2 * sizeof(Value)) Pair {
    Value first, second;
};

// Adds the pair of features at a position, interpolated. Of a level's entries, which have PAIRS pairs each, `entries` points to the first one's.
template <int D, int PAIRS, typename Value>
__device__ __forceinline__ void interpolate(const float* position, const gridencoder::Level& level, gridencoder::Options options, const Pair<Value>* entries, float* sums) {
    const gridencoder::Corners<D, float> corners(position, level, options);
#pragma unroll
    for (int corner = 0; corner < (1 << D); ++corner) {
        const Pair<Value> pair = entries[PAIRS * corners.index(corner, level)];
        const float weight = corners.weight(corner);
        sums[0] += weight * static_cast<float>(pair.first);
        sums[1] += weight * static_cast<float>(pair.second);
    }
}

// Features that are there: [rows, columns] half, columns even; beyond them zeros up to COLUMNS.
template <int COLUMNS>
struct Stored {  // `read`: of M tiles of rows from `first` on, `left` rows are in use
    static constexpr int columns = COLUMNS;
    struct Shared {};
    Encoding given;

    __device__ void prepare(Shared&) const {}

    template <int M>
    __device__ __forceinline__ void read(const Shared&, int first, int left, Rows<COLUMNS> (&rows)[M]) const {
        const __half* const from = given.features + int64_t{first} * given.columns;
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int t = 0; t < COLUMNS / TILE; ++t)
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const int row = TILE * m + lane_row() + k % 2 * 8, column = t * TILE + k / 2 * 8 + lane_column();
                    const bool there = row < left && column < given.columns;
                    rows[m].at[t][k] = there ? *reinterpret_cast<const __half2*>(from + row * given.columns + column) : __half2{};
                }
    }
};

// Features of positions, gathered: a lane handles levels q, q + 4, ... of its rows, which are just the columns that it holds, so that nothing moves
// between lanes. Coarse levels, which are dense, and fine ones, which are hashed, keep to different turns of the loop.
template <int COLUMNS, typename Value>
struct Gathered {
    static constexpr int columns = COLUMNS;
    static constexpr int levels = COLUMNS / FEATURES;
    struct Shared {
        gridencoder::Level level[levels];
    };
    Positions<Value> given;

    __device__ void prepare(Shared& shared) const {
        if (threadIdx.x < levels) {
            gridencoder::Level level{};  // a level beyond the last has no entries: zeros
            if (threadIdx.x < given.grid.levels) level = given.grid.template level<3>(threadIdx.x);
            shared.level[threadIdx.x] = level;
        }
    }

    template <int M>
    __device__ __forceinline__ void read(const Shared& shared, int first, int left, Rows<COLUMNS> (&rows)[M]) const {
        const float* const from = given.positions + int64_t{first} * 3;
        float unit[2 * M][3];
        bool inside[2 * M];
#pragma unroll
        for (int r = 0; r < 2 * M; ++r) {
            const int row = 8 * r + lane_row();
#pragma unroll
            for (int d = 0; d < 3; ++d) unit[r][d] = row < left ? (from[row * 3 + d] + given.bound) / (2 * given.bound) : -1.0f;
            inside[r] = gridencoder::inside_unit_cube<3>(unit[r]);  // false for NaN
        }
#pragma unroll
        for (int i = 0; i < levels / 4; ++i) {
            const gridencoder::Level level = shared.level[4 * i + lane() % 4];
            const bool there = level.entries > 0;
#pragma unroll
            for (int r = 0; r < 2 * M; ++r) {
                float sums[FEATURES] = {};
                if (there && inside[r])
                    gridencoder::with_known_index(level, [&](const gridencoder::Level& known) {
                        interpolate<3, 1>(unit[r], known, given.grid.options, reinterpret_cast<const Pair<Value>*>(given.table) + known.offset, sums);
                    });
                rows[r / 2].at[i / 2][i % 2 * 2 + r % 2] = __floats2half2_rn(sums[0], sums[1]);
            }
        }
    }
};

}  // namespace fusedfield
