// The mathematics of the multi-resolution hash grid (Mueller et al. 2022, "Instant Neural Graphics Primitives", section 3), shared by
// the CPU loops and the CUDA kernels.
//
// Level l has resolution^D entries on a regular grid over the unit cube. They sit at the centres of resolution^D cells, a position p
// lying at x = p * resolution - 0.5, constant beyond the outermost centres; or, with aligned corners, at the corners of
// (resolution - 1)^D cells, x = p * (resolution - 1).
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

// The kind of grid. The same for a whole launch, so that branching on it costs next to nothing and no kernel is compiled twice for it.
struct Options {
    bool tiled;          // a level too small for its cells repeats along them; else cells are hashed
    bool smoothstep;     // weights 3 t^2 - 2 t^3, which are flat at the entries; else t
    bool align_corners;  // entries sit at the corners of cells; else at their centres
};

// Primes of the spatial hash (Mueller et al. 2022, equation 4); the first is 1 so that neighbours along x stay neighbours in memory.
HOST_DEVICE uint32_t hash_prime(int dimension) { return dimension == 0 ? 1u : dimension == 1 ? 2654435761u : 805459861u; }

struct Level {
    int64_t offset;      // of its first entry in the table
    uint32_t entries;    // 0: the level lies outside the table, or cannot be indexed, and is skipped
    int32_t resolution;  // entries along an axis
    uint32_t mask;       // keeps an index within the level: all ones where each cell has its own entry, else `entries`, a power of two, - 1
    bool summed;         // dense or tiled: an index is a sum of cell * stride; hashed: an exclusive or of cell * prime
};

// The pyramid: pointers to where the loops or kernels run, sizes and its kind.
struct Grid {
    const int32_t* offsets;      // [levels + 1]
    const int32_t* resolutions;  // [levels]
    int64_t entries;
    int levels;
    Options options;

    template <int D>
    HOST_DEVICE Level level(int l) const {
        Level result;
        result.offset = offsets[l];
        const int64_t end = offsets[l + 1];
        const bool inside = result.offset >= 0 && end > result.offset && end <= entries && resolutions[l] > 0;
        result.entries = inside ? static_cast<uint32_t>(end - result.offset) : 0u;
        result.resolution = resolutions[l];
        uint64_t cells = 1;
        for (int d = 0; d < D; ++d) cells = cells > result.entries ? cells : cells * static_cast<uint64_t>(result.resolution);
        const bool dense = cells <= result.entries;
        if (!dense && (result.entries & (result.entries - 1u))) result.entries = 0u;  // no mask keeps an index within it
        result.mask = dense ? ~0u : result.entries - 1u;
        result.summed = dense || options.tiled;
        return result;
    }
};

// False for positions outside the unit cube and for NaN.
template <int D, typename Real>
HOST_DEVICE bool inside_unit_cube(const Real* position) {
    bool inside = true;
    UNROLL
    for (int d = 0; d < D; ++d) inside = inside && position[d] >= Real(0) && position[d] <= Real(1);
    return inside;
}

// What cell `c` along axis `d` adds to the index. Sums may wrap around 2^32: a tiled level keeps only the low bits of them.
HOST_DEVICE uint32_t index_term(uint32_t cell, uint32_t stride, int d, bool summed) { return cell * (summed ? stride : hash_prime(d)); }

template <int D>
HOST_DEVICE uint32_t combine(const uint32_t* terms, const Level& level) {
    uint32_t index = terms[0];
    UNROLL
    for (int d = 1; d < D; ++d) index = level.summed ? index + terms[d] : index ^ terms[d];
    return index & level.mask;
}

// Index of one cell within its level.
template <int D>
HOST_DEVICE uint32_t cell_index(const int32_t* cell, const Level& level) {
    uint32_t terms[D], stride = 1;
    UNROLL
    for (int d = 0; d < D; ++d) {
        terms[d] = index_term(static_cast<uint32_t>(cell[d]), stride, d, level.summed);
        stride *= static_cast<uint32_t>(level.resolution);
    }
    return combine<D>(terms, level);
}

// Calls work(level) from two places, one for sums and one for hashes, so that the compiled code asks once a level, not at every index.
template <typename Work>
HOST_DEVICE void with_known_index(Level level, const Work& work) {
    if (level.summed) {
        level.summed = true;
        work(level);
    } else {
        level.summed = false;
        work(level);
    }
}

// Cells along an axis, as a factor of positions.
HOST_DEVICE int32_t cells_along(const Level& level, Options options) { return level.resolution - (options.align_corners ? 1 : 0); }

// The 2^D entries that surround a position, and the weights of interpolation.
template <int D, typename Real>
struct Corners {
    uint32_t low[D], high[D];  // index terms of the lower and the upper cell along each axis
    Real fraction[D];          // weight of the upper one
    Real rate[D];              // derivative of that weight with respect to the position; 0 where the value is constant

    HOST_DEVICE Corners(const Real* position, const Level& level, Options options) {
        const Real scale = static_cast<Real>(cells_along(level, options)), shift = options.align_corners ? Real(0) : Real(0.5);
        const int32_t last = level.resolution - 1;
        const int32_t last_cell = last > 0 ? last - 1 : 0;  // lower entry of the last cell, which has a slope up to its far end
        uint32_t stride = 1;
        UNROLL
        for (int d = 0; d < D; ++d) {
            const Real exact = position[d] * scale - shift, end = static_cast<Real>(last);
            Real x = exact > Real(0) ? exact : Real(0);
            x = x < end ? x : end;
            const int32_t whole = static_cast<int32_t>(x);
            const int32_t cell = whole < last_cell ? whole : last_cell;
            const int32_t above = cell < last ? cell + 1 : last;
            fraction[d] = x - static_cast<Real>(cell);
            rate[d] = exact >= Real(0) && exact <= end && last > 0 ? scale : Real(0);
            low[d] = index_term(static_cast<uint32_t>(cell), stride, d, level.summed);
            high[d] = index_term(static_cast<uint32_t>(above), stride, d, level.summed);
            stride *= static_cast<uint32_t>(level.resolution);
        }
        if (options.smoothstep) {
            UNROLL
            for (int d = 0; d < D; ++d) {
                const Real t = fraction[d];
                fraction[d] = t * t * (Real(3) - Real(2) * t);
                rate[d] *= Real(6) * t * (Real(1) - t);
            }
        }
    }

    HOST_DEVICE uint32_t index(int corner, const Level& level) const {
        uint32_t terms[D];
        UNROLL
        for (int d = 0; d < D; ++d) terms[d] = (corner >> d & 1) ? high[d] : low[d];
        return combine<D>(terms, level);
    }

    HOST_DEVICE Real weight(int corner) const {
        Real product = 1;
        UNROLL
        for (int d = 0; d < D; ++d) product *= (corner >> d & 1) ? fraction[d] : Real(1) - fraction[d];
        return product;
    }

    // Derivative of weight(corner) with respect to the position along `axis`.
    HOST_DEVICE Real weight_rate(int corner, int axis) const {
        Real product = (corner >> axis & 1) ? rate[axis] : -rate[axis];
        UNROLL
        for (int d = 0; d < D; ++d)
            if (d != axis) product *= (corner >> d & 1) ? fraction[d] : Real(1) - fraction[d];
        return product;
    }
};

// Adds to gradient[D] that of sum_f slope[f] * feature_f(position) with respect to the position, which lies in the unit cube;
// `read(entry, values)` fetches the F features of an entry.
template <int D, int F, typename Real, typename Read>
HOST_DEVICE void add_position_gradient(const Real* position, const Real* slope, const Level& level, Options options, Read read,
                                       Real* gradient) {
    const Corners<D, Real> corners(position, level, options);
    UNROLL
    for (int corner = 0; corner < (1 << D); ++corner) {
        Real values[F], product = 0;
        read(corners.index(corner, level), values);
        UNROLL
        for (int f = 0; f < F; ++f) product += slope[f] * values[f];
        UNROLL
        for (int d = 0; d < D; ++d) gradient[d] += corners.weight_rate(corner, d) * product;
    }
}

// Gradient of scale * sum over axes and features of (table[cell] - table[upper neighbour])^2 for the cell that contains `position`;
// `add(entry, feature, value)` receives each term.
template <int D, int F, typename Real, typename Add>
HOST_DEVICE void total_variation_gradient(const Real* position, const Real* level_table, const Level& level, Options options, Real scale,
                                          Add add) {
    int32_t cell[D];
    const int32_t cells = cells_along(level, options), last_cell = cells > 0 ? cells - 1 : 0;
    UNROLL
    for (int d = 0; d < D; ++d) {
        const int32_t c = static_cast<int32_t>(position[d] * static_cast<Real>(cells));
        cell[d] = c < last_cell ? c : last_cell;
    }
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
HOST_DEVICE Real weight_decay_gradient(Real value, Real weight, int64_t numbers) {
    return Real(2) * weight * value / static_cast<Real>(numbers);
}

}  // namespace gridencoder
