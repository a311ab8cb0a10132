// Launchers of the CUDA kernels that draw rays: device pointers, sizes and a stream; no torch. Each returns what cudaGetLastError says.
#pragma once

#include <cuda_runtime_api.h>

#include "draw_math.h"

namespace raymarching {

// random [rays, columns]; `mixed`: each row chooses its own photo, else all take that of row 0. No rays, no launch.
cudaError_t launch_draw_rays(const float* random, int64_t columns, bool mixed, const int32_t* count, int64_t rays, const Photos& photos,
                             const Views& views, const DrawnRays& drawn, cudaStream_t stream);
cudaError_t launch_adapt_ray_count(const RayAim& aim, const int32_t* counts, int32_t* value, cudaStream_t stream);

}  // namespace raymarching
