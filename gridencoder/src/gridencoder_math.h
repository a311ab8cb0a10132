// The mathematics of the multi-resolution hash grid (Mueller et al. 2022, "Instant Neural Graphics Primitives", section 3), shared by
// the CPU loops and the CUDA kernels.
//
// Level l divides the unit cube into resolution^D cells; an entry of the table sits at the centre of each cell. A position p lies at
// x = p * resolution - 0.5 in units of cells; beyond the outermost centres the value is constant.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#else
#define HOST_DEVICE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#endif

namespace gridencoder {

// Primes of the spatial hash (Mueller et al. 2022, equation 4); the first is 1 so that neighbours along x stay neighbours in memory.
HOST_DEVICE uint32_t hash_prime(int dimension) { return dimension == 0 ? 1u : dimension == 1 ? 2654435761u : 805459861u; }

struct Level {
    int64_t offset;      // of its first entry in the table
    uint32_t entries;    // 0: the level lies outside the table and is skipped
    int32_t resolution;  // cells along an axis
    bool dense;          // each cell has its own entry; else cells are hashed, and `entries` is a power of two
};

template <int D>
HOST_DEVICE Level level_at(const int32_t* offsets, const int32_t* resolutions, int level, int64_t table_entries) {
    Level result;
    result.offset = offsets[level];
    const int64_t end = offsets[level + 1];
    const bool inside = result.offset >= 0 && end > result.offset && end <= table_entries && resolutions[level] > 0;
    result.entries = inside ? static_cast<uint32_t>(end - result.offset) : 0u;
    result.resolution = resolutions[level];
    uint64_t cells = 1;
    for (int d = 0; d < D; ++d) cells = cells > result.entries ? cells : cells * static_cast<uint64_t>(result.resolution);
    result.dense = cells <= result.entries;
    return result;
}

// False for positions outside the unit cube and for NaN.
template <int D, typename Real>
HOST_DEVICE bool inside_unit_cube(const Real* position) {
    bool inside = true;
    UNROLL
    for (int d = 0; d < D; ++d) inside = inside && position[d] >= Real(0) && position[d] <= Real(1);
    return inside;
}

// What cell `c` along axis `d` adds to the index: a sum of strides where the level is dense, an exclusive or of products where it is
// hashed.
HOST_DEVICE uint32_t index_term(uint32_t cell, uint32_t stride, int d, bool dense) { return cell * (dense ? stride : hash_prime(d)); }

template <int D>
HOST_DEVICE uint32_t combine(const uint32_t* terms, uint32_t entries, bool dense) {
    uint32_t index = terms[0];
    UNROLL
    for (int d = 1; d < D; ++d) index = dense ? index + terms[d] : index ^ terms[d];
    return dense ? index : index & (entries - 1u);
}

// Index of one cell within its level.
template <int D>
HOST_DEVICE uint32_t cell_index(const int32_t* cell, const Level& level) {
    uint32_t terms[D], stride = 1;
    UNROLL
    for (int d = 0; d < D; ++d) {
        terms[d] = index_term(static_cast<uint32_t>(cell[d]), stride, d, level.dense);
        stride *= static_cast<uint32_t>(level.resolution);
    }
    return combine<D>(terms, level.entries, level.dense);
}

// The 2^D entries whose centres surround a position, and the weights of linear interpolation.
template <int D, typename Real>
struct Corners {
    uint32_t low[D], high[D];  // index terms of the lower and the upper cell along each axis
    Real fraction[D];          // weight of the upper one

    HOST_DEVICE Corners(const Real* position, int32_t resolution, bool dense) {
        uint32_t stride = 1;
        UNROLL
        for (int d = 0; d < D; ++d) {
            const Real last = static_cast<Real>(resolution - 1);
            Real x = position[d] * static_cast<Real>(resolution) - Real(0.5);
            x = x > Real(0) ? x : Real(0);
            x = x < last ? x : last;
            const int32_t cell = static_cast<int32_t>(x);
            const int32_t above = cell + (cell + 1 < resolution ? 1 : 0);
            fraction[d] = x - static_cast<Real>(cell);
            low[d] = index_term(static_cast<uint32_t>(cell), stride, d, dense);
            high[d] = index_term(static_cast<uint32_t>(above), stride, d, dense);
            stride *= static_cast<uint32_t>(resolution);
        }
    }

    HOST_DEVICE uint32_t index(int corner, uint32_t entries, bool dense) const {
        uint32_t terms[D];
        UNROLL
        for (int d = 0; d < D; ++d) terms[d] = (corner >> d & 1) ? high[d] : low[d];
        return combine<D>(terms, entries, dense);
    }

    HOST_DEVICE Real weight(int corner) const {
        Real product = 1;
        UNROLL
        for (int d = 0; d < D; ++d) product *= (corner >> d & 1) ? fraction[d] : Real(1) - fraction[d];
        return product;
    }
};

// The cell that contains a position of the unit cube.
template <int D, typename Real>
HOST_DEVICE void cell_of(const Real* position, int32_t resolution, int32_t* cell) {
    UNROLL
    for (int d = 0; d < D; ++d) {
        const int32_t c = static_cast<int32_t>(position[d] * static_cast<Real>(resolution));
        cell[d] = c < resolution ? c : resolution - 1;
    }
}

// Gradient of scale * sum over axes and features of (table[cell] - table[upper neighbour])^2 for the cell that contains `position`;
// `add(entry, feature, value)` receives each term.
template <int D, int F, typename Real, typename Add>
HOST_DEVICE void total_variation_gradient(const Real* position, const Real* level_table, const Level& level, Real scale, Add add) {
    int32_t cell[D];
    cell_of<D>(position, level.resolution, cell);
    const uint64_t here = cell_index<D>(cell, level);
    UNROLL
    for (int d = 0; d < D; ++d) {
        if (cell[d] + 1 >= level.resolution) continue;
        ++cell[d];
        const uint64_t there = cell_index<D>(cell, level);
        --cell[d];
        UNROLL
        for (int f = 0; f < F; ++f) {
            const Real slope = Real(2) * scale * (level_table[here * F + f] - level_table[there * F + f]);
            add(here, f, slope);
            add(there, f, -slope);
        }
    }
}

// Gradient of weight * mean(square of a level's entries) with respect to one number of that level.
template <typename Real>
HOST_DEVICE Real weight_decay_gradient(Real value, Real weight, const Level& level, int features) {
    return Real(2) * weight * value / (static_cast<Real>(level.entries) * static_cast<Real>(features));
}

}  // namespace gridencoder
