// Which rows of a launch are in use, and how blocks share them.
#pragma once

#include <algorithm>

#include "fusedfield_cuda.h"
#include "tile.cuh"

namespace fusedfield {

__device__ __forceinline__ int used_rows(Batch batch) { return batch.count ? max(0, min(*batch.count, batch.rows)) : batch.rows; }

// How many of the M tiles of rows from `first` on lie before `end`.
template <int M>
__device__ __forceinline__ int tile_rows(int first, int end) {
    return max(0, min(end - first, M * TILE));
}

// What a launch has to do: a block takes `rows_a_turn` of the rows at a time. To start one costs about as much as `start` turns, so that a multiprocessor gets
// a second one only where each has more turns than that.
struct Work {
    int rows, rows_a_turn;
    int start = 0;
};

// How many blocks share the rows on so many multiprocessors, each of which holds `resident` at once.
inline int blocks_for(Work work, int processors, int resident) {
    const int turns = (work.rows - 1) / work.rows_a_turn + 1;
    return std::min({turns, processors * resident, std::max(processors, turns / (work.start + 1))});
}

}  // namespace fusedfield
