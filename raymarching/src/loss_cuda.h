// Launcher of the loss: device pointers, sizes and a stream; no torch.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "loss_math.h"

namespace raymarching {

// Raw: float or __half. raw lies on a boundary of a row (16 or 8 bytes), delta [samples, RAW] on one of 16, spacing on one of 8;
// weights [samples] or null; numbers [2]. All of delta, weights and numbers is written. Returns what cudaGetLastError says.
template <class Raw>
cudaError_t launch_composite_loss(const LossProblem<Raw, float>& problem, float* delta, float* weights, float* numbers,
                                  cudaStream_t stream);

}  // namespace raymarching
