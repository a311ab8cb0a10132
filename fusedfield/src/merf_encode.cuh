// The MeRF network's inputs in registers: the sums of a grid's and three planes' features, of 16 rows a tile, read from memory or gathered here and now.
#pragma once

#include "encode.cuh"

namespace fusedfield {

constexpr int ENCODED = 32, MERF_LEVELS = 8, PAIRS = 2;  // of features, an entry

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

// Features of positions, gathered. An entry has two pairs of features: lanes q = 0 and 1 take those of levels 0, 2 ..., lanes 2 and 3 those of 1, 3 ...; these
// are just the columns that they hold, so that nothing moves between lanes.
template <typename Value>
struct GatheredSum {
    struct Shared {
        gridencoder::Level level[MERF_GRIDS][MERF_LEVELS];
    };
    MerfPositions<Value> given;

    __device__ void prepare(Shared& shared) const {
        for (int i = threadIdx.x; i < MERF_GRIDS * MERF_LEVELS; i += THREADS) {
            const int g = i / MERF_LEVELS, l = i % MERF_LEVELS;
            gridencoder::Level level{};  // a level beyond the last has no entries: zeros
            if (l < given.grids[g].levels) level = g == 0 ? given.grids[g].template level<3>(l) : given.grids[g].template level<2>(l);
            shared.level[g][l] = level;
        }
    }

    template <int M>
    __device__ __forceinline__ void read(const Shared& shared, int first, int left, Rows<ENCODED> (&rows)[M]) const {
        const float* const from = given.positions + int64_t{first} * 3;
        float unit[2 * M][3];
#pragma unroll
        for (int r = 0; r < 2 * M; ++r) {
            const int row = 8 * r + lane_row();
#pragma unroll
            for (int d = 0; d < 3; ++d) unit[r][d] = row < left ? (from[row * 3 + d] + given.bound) / (2 * given.bound) : -1.0f;
        }
#pragma unroll
        for (int i = 0; i < MERF_LEVELS / 2; ++i) {
            const int l = 2 * i + lane() % 4 / 2;
#pragma unroll
            for (int r = 0; r < 2 * M; ++r) {
                const float *const p = unit[r], xy[2] = {p[0], p[1]}, yz[2] = {p[1], p[2]}, xz[2] = {p[0], p[2]};
                float sums[2] = {};
                add<3>(shared.level[0][l], 0, p, sums);
                add<2>(shared.level[1][l], 1, xy, sums);
                add<2>(shared.level[2][l], 2, yz, sums);
                add<2>(shared.level[3][l], 3, xz, sums);
                rows[r / 2].at[i / 2][i % 2 * 2 + r % 2] = __floats2half2_rn(sums[0], sums[1]);
            }
        }
    }

    // Adds this lane's pair of features of a level of grid g; nothing outside the unit cube, or for NaN.
    template <int D>
    __device__ __forceinline__ void add(const gridencoder::Level& level, int g, const float* position, float* sums) const {
        if (level.entries == 0 || !gridencoder::inside_unit_cube<D>(position)) return;
        gridencoder::with_known_index(level, [&](const gridencoder::Level& known) {
            const Pair<Value>* const entries = reinterpret_cast<const Pair<Value>*>(given.tables[g]) + PAIRS * known.offset + lane() % PAIRS;
            interpolate<D, PAIRS>(position, known, given.grids[g].options, entries, sums);
        });
    }
};

}  // namespace fusedfield
