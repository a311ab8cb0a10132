// Launchers of the CUDA kernels: raw device pointers, sizes and the stream to run on; each returns the error of its own launch.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace shencoder {

// Value: float or __half; degree 1 to max_degree; output and grad on a boundary of 4 bytes.
template <typename Value>
cudaError_t launch_forward(const float* directions, int64_t rows, int64_t degree, Value* output, cudaStream_t stream);

template <typename Value>
cudaError_t launch_backward(const Value* grad, const float* directions, int64_t rows, int64_t degree, float* gradient, cudaStream_t stream);

}  // namespace shencoder
