// Launchers of the CUDA kernels: raw device pointers and the stream to run on; each returns the error of its own launches.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "fusedadam_math.h"

namespace fusedadam {

// One step for all leaves, none of which is empty: two launches for each 16 of them.
cudaError_t launch_step(const Leaf<__half>* leaves, int count, Control* control, const Settings& settings, cudaStream_t stream);

}  // namespace fusedadam
