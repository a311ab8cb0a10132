// One thread a row: how the kernels here are launched.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace raymarching {

constexpr int THREADS = 128;  // of a block

__device__ __forceinline__ int64_t thread_row() { return int64_t(blockIdx.x) * THREADS + threadIdx.x; }

// The grid holds 2^31 blocks, more rows than any buffer has.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t threads, cudaStream_t stream, const Arguments&... arguments) {
  if (threads <= 0) return cudaSuccess;
  kernel<<<static_cast<unsigned>((threads + THREADS - 1) / THREADS), THREADS, 0, stream>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace raymarching
