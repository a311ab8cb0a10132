// Launchers of the CUDA kernels: raw device pointers, sizes and the stream to run on; each returns the error of its own launch.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "gridencoder_math.h"

namespace gridencoder {

// D: 2 or 3. F: 1, 2, 4 or 8. Value: float or __half. Rows of F values must be aligned to their own size.
template <int D, int F, typename Value>
cudaError_t launch_forward(const float* positions, const Value* table, Grid grid, int64_t samples, Value* output, cudaStream_t stream);

template <int D, int F, typename Value>
cudaError_t launch_backward(const Value* grad, const float* positions, Grid grid, int64_t samples, float* result, cudaStream_t stream);

template <int D, int F, typename Value>
cudaError_t launch_backward_positions(const Value* grad, const float* positions, const Value* table, Grid grid, int64_t samples,
                                      float* result, cudaStream_t stream);

template <int D, int F>
cudaError_t launch_total_variation(const float* table, Grid grid, const float* positions, int64_t samples, const float* weight,
                                   float* gradient, cudaStream_t stream);

cudaError_t launch_weight_decay(const float* table, const int32_t* offsets, int levels, int64_t entries, int features, const float* weight,
                                float* gradient, cudaStream_t stream);

}  // namespace gridencoder
