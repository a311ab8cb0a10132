// The MeRF network's inputs in registers: the sums of a grid's and three planes' features, of 16 rows a tile, read from memory or gathered here and now.
#pragma once

#include "encode.cuh"

namespace fusedfield {

constexpr int ENCODED = 32, MERF_LEVELS = 8, MERF_FEATURES = 4;  // an entry

// Features that are there.
struct StoredSum {
    struct Shared {};
    MerfEncodings given;

    __device__ void prepare(Shared&) const {}

    // Of M tiles of rows from `first` on, `left` rows are in use.
    template <int M>
    __device__ __forceinline__ void read(const Shared&, int first, int left, Rows<ENCODED> (&rows)[M]) const {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int t = 0; t < ENCODED / TILE; ++t)
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const int row = TILE * m + lane_row() + k % 2 * 8, column = t * TILE + k / 2 * 8 + lane_column();
                    float2 sum{};
                    if (row < left) {
#pragma unroll
                        for (int g = 0; g < MERF_GRIDS; ++g) {
                            const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(given.features[g] + int64_t{first + row} * ENCODED + column));
                            sum.x += pair.x, sum.y += pair.y;
                        }
                    }
                    rows[m].at[t][k] = __float22half2_rn(sum);
                }
    }
};

// Features of positions, gathered: a lane takes a row and one level after the other, of all four grids, as GatheredByRow does.
template <typename Value>
struct GatheredSum {
    struct Shared {
        gridencoder::Level level[MERF_GRIDS][MERF_LEVELS];
        LaneRows<ENCODED> rows;
    };
    MerfPositions<Value> given;

    __device__ void prepare(Shared& shared) const {
        prepare_levels<3>(given.grids[0], shared.level[0]);
        for (int g = 1; g < MERF_GRIDS; ++g) prepare_levels<2>(given.grids[g], shared.level[g]);
    }

    __device__ __forceinline__ void read(Shared& shared, int first, int left, Rows<ENCODED> (&tiles)[WARP / TILE]) const {
        float unit[3];
        unit_position(given.positions + int64_t{first + lane()} * 3, lane() < left, given.bound, unit);
        const float xy[2] = {unit[0], unit[1]}, yz[2] = {unit[1], unit[2]}, xz[2] = {unit[0], unit[2]};
        shared.rows.receive([&](__half* row) {
#pragma unroll 1
            for (int l = 0; l < MERF_LEVELS; ++l) {
                float sums[MERF_FEATURES] = {};
                add<3>(shared.level[0][l], 0, unit, sums);
                add<2>(shared.level[1][l], 1, xy, sums);
                add<2>(shared.level[2][l], 2, yz, sums);
                add<2>(shared.level[3][l], 3, xz, sums);
                __half2* const to = reinterpret_cast<__half2*>(row + MERF_FEATURES * l);
                to[0] = __floats2half2_rn(sums[0], sums[1]);
                to[1] = __floats2half2_rn(sums[2], sums[3]);
            }
        }, tiles);
    }

    // Adds a level's features of grid g; nothing outside the unit cube, or for NaN.
    template <int D>
    __device__ __forceinline__ void add(const gridencoder::Level& level, int g, const float (&position)[D], float (&sums)[MERF_FEATURES]) const {
        if (gridencoder::inside_unit_cube<D>(position)) interpolate_level<D>(position, level, given.grids[g].options, given.tables[g], sums);
    }
};

}  // namespace fusedfield
