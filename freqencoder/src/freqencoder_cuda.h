// Launchers of the CUDA kernels: raw device pointers, sizes and the stream to run on; each returns the error of its own launch.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace freqencoder {

// What both kernels need to know of the columns.
struct Layout {
    int dimensions, degree;  // 1 to max_dimensions, 1 to max_degree
    bool include_input;
};

// Value: float or __half; output and grad on a boundary of 4 bytes.
template <typename Value>
cudaError_t launch_forward(const float* positions, int64_t rows, Layout layout, Value* output, cudaStream_t stream);

template <typename Value>
cudaError_t launch_backward(const Value* grad, const float* positions, int64_t rows, Layout layout, float* gradient, cudaStream_t stream);

}  // namespace freqencoder
