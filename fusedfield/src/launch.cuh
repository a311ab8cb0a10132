// Blocks that stay: as many as the GPU holds at once, each with the matrices in its shared memory, share the rows among them.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "fusedfield_cuda.h"
#include "tile.cuh"

namespace fusedfield {

__device__ __forceinline__ int used_rows(Batch batch) { return batch.count ? max(0, min(*batch.count, batch.rows)) : batch.rows; }

// How many of the M tiles of rows from `first` on lie before `end`.
template <int M>
__device__ __forceinline__ int tile_rows(int first, int end) {
    return max(0, min(end - first, M * TILE));
}

// Launches `kernel` with `shared` bytes, one block for each `rows_a_block` of the rows but no more than run at once.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), size_t shared, int rows, int rows_a_block, cudaStream_t stream, const Arguments&... arguments) {
    if (rows <= 0) return cudaSuccess;
    int device, processors, resident;
    cudaError_t error = cudaGetDevice(&device);
    if (!error) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (!error) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (!error) error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, THREADS, shared);
    if (error) return error;
    if (resident == 0) return cudaErrorLaunchOutOfResources;
    const int blocks = std::min((rows - 1) / rows_a_block + 1, processors * resident);
    kernel<<<blocks, THREADS, shared, stream>>>(arguments...);
    return cudaGetLastError();
}

}  // namespace fusedfield
