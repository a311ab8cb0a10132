// The loops of the CPU form. They are bit-for-bit repeatable: the forward pass and the gradient of the positions are split over samples,
// and whatever adds to the table is split over levels, so no number is ever shared by two threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "gridencoder_math.h"

namespace gridencoder {

// Levels differ in cost (the fine ones miss the cache), so threads take them one at a time, the finest first.
template <typename Work>
void for_each_level(int levels, const Work& work) {
    std::atomic<int> taken{0};
    at::parallel_for(0, std::min<int64_t>(levels, at::get_num_threads()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; ++thread)
            for (int i = taken++; i < levels; i = taken++) work(levels - 1 - i);
    });
}

// Entries and weights of the corners around a few samples, corner by corner, so that the compiler computes them in vector registers.
template <int D, typename Real>
struct Stencils {
    static constexpr int width = 16;
    uint32_t entry[1 << D][width];
    Real weight[1 << D][width];
    uint32_t inside[width];  // 0: outside the unit cube, or NaN: there is nothing to read or to add to

    // Compiled once for each D and Real: the work that depends on the features lies elsewhere.
    __attribute__((noinline)) void locate(const Real* positions, int count, const Level& level, Options options) {
        Real coordinate[D][width];
        for (int i = 0; i < width; ++i)
            for (int d = 0; d < D; ++d) coordinate[d][i] = i < count ? positions[i * D + d] : Real(-1);
        if (options.smoothstep) level.summed ? fill<true, true>(coordinate, level, options) : fill<false, true>(coordinate, level, options);
        else level.summed ? fill<true, false>(coordinate, level, options) : fill<false, false>(coordinate, level, options);
    }

   private:
    // A loop with a branch inside would not be computed in vector registers, so the branches are known here.
    template <bool summed, bool smoothstep>
    HOST_DEVICE void fill(const Real (&coordinate)[D][width], Level level, Options options) {
        level.summed = summed;
        options.smoothstep = smoothstep;
#pragma GCC ivdep
        for (int i = 0; i < width; ++i) {
            Real position[D];
            UNROLL
            for (int d = 0; d < D; ++d) position[d] = coordinate[d][i];
            inside[i] = inside_unit_cube<D>(position);
            const Corners<D, Real> corners(position, level, options);
            UNROLL
            for (int corner = 0; corner < (1 << D); ++corner) {
                entry[corner][i] = corners.index(corner, level);
                weight[corner][i] = corners.weight(corner);
            }
        }
    }
};

constexpr int64_t NEAR_CACHE = 1 << 18;  // bytes of a level that the core's own cache serves without being asked ahead

// Calls work(i, count, stencils) for the samples begin to end, `width` at a time. A level that exceeds the cache is bound by waiting for
// its entries, so there those of the next samples are asked for before the present ones are worked on. `at(entry)`: where an entry lies.
template <int D, typename Real, typename At, typename Work>
void for_each_stencil(const Real* positions, int64_t begin, int64_t end, const Level& level, Options options, int64_t level_bytes,
                      const At& at, const Work& work) {
    constexpr int width = Stencils<D, Real>::width;
    const auto count_from = [&](int64_t i) { return static_cast<int>(std::min<int64_t>(width, end - i)); };
    Stencils<D, Real> two[2];
    if (level_bytes <= NEAR_CACHE) {
        for (int64_t i = begin; i < end; i += width) {
            two[0].locate(positions + i * D, count_from(i), level, options);
            work(i, count_from(i), two[0]);
        }
        return;
    }
    const auto ask_for = [&](int64_t i, Stencils<D, Real>& stencils) {
        if (i >= end) return;
        stencils.locate(positions + i * D, count_from(i), level, options);
        for (int corner = 0; corner < (1 << D); ++corner)
            for (int j = 0; j < width; ++j) __builtin_prefetch(at(stencils.entry[corner][j]));
    };
    ask_for(begin, two[0]);
    int turn = 0;
    for (int64_t i = begin; i < end; i += width, turn = 1 - turn) {
        ask_for(i + width, two[1 - turn]);
        work(i, count_from(i), two[turn]);
    }
}

template <int D, int F, typename Value, typename Real>
void forward_loop(const Real* positions, const Value* table, Grid grid, int64_t samples, Value* output) {
    constexpr int64_t block = 1 << 16;  // samples that pass by one level before the next: its entries stay in the cache meanwhile
    at::parallel_for(0, samples, 1024, [&](int64_t begin, int64_t end) {
        for (int64_t first = begin; first < end; first += block) {
            const int64_t last = std::min(end, first + block);
            for (int l = 0; l < grid.levels; ++l) {
                const Level level = grid.level<D>(l);
                const Value* level_table = table + level.offset * F;
                const auto at = [&](uint32_t entry) { return level_table + uint64_t{entry} * F; };
                const auto work = [&](int64_t i, int count, const Stencils<D, Real>& stencils) {
                    for (int j = 0; j < count; ++j) {
                        Real result[F] = {};
                        UNROLL
                        for (int corner = 0; stencils.inside[j] && corner < (1 << D); ++corner)
                            for (int f = 0; f < F; ++f)
                                result[f] += stencils.weight[corner][j] * static_cast<Real>(at(stencils.entry[corner][j])[f]);
                        for (int f = 0; f < F; ++f) output[((i + j) * grid.levels + l) * F + f] = static_cast<Value>(result[f]);
                    }
                };
                for_each_stencil<D>(positions, first, last, level, grid.options, level.entries * F * sizeof(Value), at, work);
            }
        }
    });
}

template <int D, int F, typename Value, typename Real>
void backward_loop(const Value* grad, const Real* positions, Grid grid, int64_t samples, Real* result) {
    for_each_level(grid.levels, [&](int l) {
        const Level level = grid.level<D>(l);
        Real* level_result = result + level.offset * F;
        const auto at = [&](uint32_t entry) { return level_result + uint64_t{entry} * F; };
        const auto work = [&](int64_t i, int count, const Stencils<D, Real>& stencils) {
            for (int j = 0; j < count; ++j) {
                if (!stencils.inside[j]) continue;
                Real slope[F];
                for (int f = 0; f < F; ++f) slope[f] = static_cast<Real>(grad[((i + j) * grid.levels + l) * F + f]);
                if (std::all_of(slope, slope + F, [](Real value) { return value == Real(0); })) continue;
                Real* entry[1 << D];  // read first: for all the compiler knows, the additions could change the stencils
                Real weight[1 << D];
                UNROLL
                for (int corner = 0; corner < (1 << D); ++corner) {
                    entry[corner] = at(stencils.entry[corner][j]);
                    weight[corner] = stencils.weight[corner][j];
                }
                UNROLL
                for (int corner = 0; corner < (1 << D); ++corner)
                    for (int f = 0; f < F; ++f) entry[corner][f] += weight[corner] * slope[f];
            }
        };
        for_each_stencil<D>(positions, 0, samples, level, grid.options, level.entries * F * sizeof(Real), at, work);
    });
}

template <int D, int F, typename Value, typename Real>
void backward_positions_loop(const Value* grad, const Real* positions, const Value* table, Grid grid, int64_t samples, Real* result) {
    at::parallel_for(0, samples, 1024, [&](int64_t begin, int64_t end) {
        std::fill(result + begin * D, result + end * D, Real(0));
        for (int l = 0; l < grid.levels; ++l) {
            const Level level = grid.level<D>(l);
            const Value* level_table = table + level.offset * F;
            const auto read = [&](uint64_t entry, Real* values) {
                for (int f = 0; f < F; ++f) values[f] = static_cast<Real>(level_table[entry * F + f]);
            };
            for (int64_t i = begin; i < end; ++i) {
                if (!inside_unit_cube<D>(positions + i * D)) continue;
                Real slope[F];
                for (int f = 0; f < F; ++f) slope[f] = static_cast<Real>(grad[(i * grid.levels + l) * F + f]);
                add_position_gradient<D, F>(positions + i * D, slope, level, grid.options, read, result + i * D);
            }
        }
    });
}

template <int D, int F, typename Real>
void total_variation_loop(const Real* table, Grid grid, const Real* positions, int64_t samples, Real scale, Real* gradient) {
    for_each_level(grid.levels, [&](int l) {
        const Level level = grid.level<D>(l);
        Real* level_gradient = gradient + level.offset * F;
        const auto add = [&](uint64_t entry, int f, Real value) { level_gradient[entry * F + f] += value; };
        for (int64_t i = 0; i < samples; ++i) {
            if (!inside_unit_cube<D>(positions + i * D)) continue;
            total_variation_gradient<D, F>(positions + i * D, table + level.offset * F, level, grid.options, scale, add);
        }
    });
}

}  // namespace gridencoder
