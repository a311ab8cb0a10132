// The inputs of a network in registers: grid features of 16 rows, read from memory or gathered from the grid here and now.
#pragma once

#include <cuda_fp16.h>

#include "../../gridencoder/src/gridencoder_math.h"
#include "fusedfield_cuda.h"
#include "tile.cuh"

namespace fusedfield {

constexpr int FEATURES = 2;  // an entry

template <int N, typename Value>
struct alignas(N * sizeof(Value)) Entry {
    Value features[N];
};

// Adds a level's features at a position, interpolated between its `entries`.
template <int D, int N, typename Value>
__device__ __forceinline__ void interpolate(const float* position, const gridencoder::Level& level, gridencoder::Options options, const Entry<N, Value>* entries,
                                            float (&sums)[N]) {
    const gridencoder::Corners<D, float> corners(position, level, options);
#pragma unroll
    for (int corner = 0; corner < (1 << D); ++corner) {
        const Entry<N, Value> entry = entries[corners.index(corner, level)];
        const float weight = corners.weight(corner);
#pragma unroll
        for (int f = 0; f < N; ++f) sums[f] += weight * static_cast<float>(entry.features[f]);
    }
}

// The same, where the level's entries are found in a table; nothing of a level without entries.
template <int D, int N, typename Value>
__device__ __forceinline__ void interpolate_level(const float* position, const gridencoder::Level& level, gridencoder::Options options, const Value* table,
                                                  float (&sums)[N]) {
    if (level.entries == 0) return;
    gridencoder::with_known_index(level, [&](const gridencoder::Level& known) {
        interpolate<D>(position, known, options, reinterpret_cast<const Entry<N, Value>*>(table) + known.offset, sums);
    });
}

// Where a position in [-bound, bound]^3 is in the unit cube; one that is not there is outside.
__device__ __forceinline__ void unit_position(const float* position, bool there, float bound, float (&unit)[3]) {
#pragma unroll
    for (int d = 0; d < 3; ++d) unit[d] = there ? (position[d] + bound) / (2 * bound) : -1.0f;
}

// Puts the levels of a grid where all threads of the block find them; one beyond the last has no entries.
template <int D, int LEVELS>
__device__ __forceinline__ void prepare_levels(const gridencoder::Grid& grid, gridencoder::Level (&levels)[LEVELS]) {
    if (threadIdx.x < LEVELS) levels[threadIdx.x] = threadIdx.x < grid.levels ? grid.template level<D>(threadIdx.x) : gridencoder::Level{};
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
// between lanes, and sixteen rows are enough for a warp. Coarse levels, which are dense, and fine ones, which are hashed, keep to different turns of
// the loop but for one.
template <int COLUMNS, typename Value>
struct Gathered {
    static constexpr int columns = COLUMNS;
    static constexpr int levels = COLUMNS / FEATURES;
    struct Shared {
        gridencoder::Level level[levels];
    };
    Positions<Value> given;

    __device__ void prepare(Shared& shared) const { prepare_levels<3>(given.grid, shared.level); }

    template <int M>
    __device__ __forceinline__ void read(const Shared& shared, int first, int left, Rows<COLUMNS> (&rows)[M]) const {
        const float* const from = given.positions + int64_t{first} * 3;
        float unit[2 * M][3];
        bool inside[2 * M];
#pragma unroll
        for (int r = 0; r < 2 * M; ++r) {
            const int row = 8 * r + lane_row();
            unit_position(from + row * 3, row < left, given.bound, unit[r]);
            inside[r] = gridencoder::inside_unit_cube<3>(unit[r]);  // false for NaN
        }
#pragma unroll
        for (int i = 0; i < levels / 4; ++i) {
            const gridencoder::Level level = shared.level[4 * i + lane() % 4];
#pragma unroll
            for (int r = 0; r < 2 * M; ++r) {
                float sums[FEATURES] = {};
                if (inside[r]) interpolate_level<3>(unit[r], level, given.grid.options, given.table, sums);
                rows[r / 2].at[i / 2][i % 2 * 2 + r % 2] = __floats2half2_rn(sums[0], sums[1]);
            }
        }
    }
};

// Rows of features by way of shared memory: each lane of a warp makes a row of its own, and all receive them as the tensor cores read them.
template <int COLUMNS>
struct LaneRows {
    static constexpr int stride = COLUMNS + PAD;
    alignas(16) __half rows[WARPS][WARP * stride];

    // make(row) writes COLUMNS numbers.
    template <typename Make>
    __device__ __forceinline__ void receive(const Make& make, Rows<COLUMNS> (&tiles)[WARP / TILE]) {
        __half* const own = rows[warp()];
        __syncwarp();  // the rows before have been read
        make(own + lane() * stride);
        __syncwarp();
#pragma unroll
        for (int m = 0; m < WARP / TILE; ++m) load_rows(own + m * TILE * stride, stride, tiles[m]);
    }
};

// Features of positions, gathered: a lane takes a row and one level after the other, so that all lanes index alike. That takes less arithmetic than `Gathered`,
// with few levels above all, but 32 rows a warp.
template <int COLUMNS, typename Value>
struct GatheredByRow {
    static constexpr int levels = COLUMNS / FEATURES;
    struct Shared {
        gridencoder::Level level[levels];
        LaneRows<COLUMNS> rows;
    };
    Positions<Value> given;

    __device__ void prepare(Shared& shared) const { prepare_levels<3>(given.grid, shared.level); }

    __device__ __forceinline__ void read(Shared& shared, int first, int left, Rows<COLUMNS> (&tiles)[WARP / TILE]) const {
        float unit[3];
        unit_position(given.positions + int64_t{first + lane()} * 3, lane() < left, given.bound, unit);
        const bool inside = gridencoder::inside_unit_cube<3>(unit);
        shared.rows.receive([&](__half* row) {
#pragma unroll 1
            for (int l = 0; l < levels; ++l) {
                float sums[FEATURES] = {};
                if (inside) interpolate_level<3>(unit, shared.level[l], given.grid.options, given.table, sums);
                *reinterpret_cast<__half2*>(row + FEATURES * l) = __floats2half2_rn(sums[0], sums[1]);
            }
        }, tiles);
    }
};

}  // namespace fusedfield
