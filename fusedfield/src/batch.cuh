// Which rows of a launch are in use.
#pragma once

#include "fusedfield_cuda.h"
#include "tile.cuh"

namespace fusedfield {

__device__ __forceinline__ int used_rows(Batch batch) { return batch.count ? max(0, min(*batch.count, batch.rows)) : batch.rows; }

// How many of the M tiles of rows from `first` on lie before `end`.
template <int M>
__device__ __forceinline__ int tile_rows(int first, int end) {
    return max(0, min(end - first, M * TILE));
}

}  // namespace fusedfield
