// Blocks that stay: as many as the GPU holds at once, each with the matrices in its shared memory, share the rows among them.
#pragma once

#include <cuda_runtime.h>

#include "batch.cuh"

namespace fusedfield {

// A block's shared memory, all of it.
template <class Block>
__device__ __forceinline__ Block& shared_block() {
    extern __shared__ __align__(16) unsigned char memory[];
    return *reinterpret_cast<Block*>(memory);
}

// Launches `kernel` with `shared` bytes, one block a turn of the work but no more than run at once.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), size_t shared, Work work, cudaStream_t stream, const Arguments&... arguments) {
    if (work.rows <= 0) return cudaSuccess;
    int device, processors, resident;
    cudaError_t error = cudaGetDevice(&device);
    if (!error) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (!error) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (!error) error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, THREADS, shared);
    if (error) return error;
    if (resident == 0) return cudaErrorLaunchOutOfResources;
    kernel<<<blocks_for(work, processors, resident), THREADS, shared, stream>>>(arguments...);
    return cudaGetLastError();
}

}  // namespace fusedfield
