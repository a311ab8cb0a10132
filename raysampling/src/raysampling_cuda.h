// Launchers of the CUDA kernels: raw device pointers and the stream to run on; each returns the error of its own launches.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "raysampling_math.h"

namespace raysampling {

// S samples a ray, one ray behind the other.
struct Placed {
    float *positions, *directions;  // [rays S, 3]
    float *t, *dt;                  // [rays S]
    int32_t* ray_index;             // [rays S]
};

cudaError_t launch_place(const Placing<float>& placing, const Placed& placed, cudaStream_t stream);

// Logit: float or __half. new_edges [rays, wanted + 1], weights [rays, intervals].
template <typename Logit>
cudaError_t launch_resample(const Resampling<Logit, float>& resampling, float* new_edges, float* weights, cudaStream_t stream);

// gradient [rays, intervals], loss [1].
template <typename Logit>
cudaError_t launch_interlevel(const Interlevel<Logit, float>& interlevel, float* gradient, float* loss, cudaStream_t stream);

}  // namespace raysampling
