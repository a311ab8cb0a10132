// What the kernels of the hash grid share: a thread's sample, the features of an entry, sizes of launches.
#pragma once

#include "gridencoder_cuda.h"

namespace gridencoder {

constexpr int threads = 256;  // a block

__device__ __forceinline__ int64_t thread_index() { return static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; }

// A thread a sample, and a row of blocks a level.
inline dim3 blocks_for(int64_t samples, int levels) {
    return dim3(static_cast<unsigned>((samples + threads - 1) / threads), static_cast<unsigned>(levels));
}

// F features of one entry, read or written at once.
template <typename Value, int F>
struct alignas(sizeof(Value) * F) Features {
    Value at[F];
};

template <int F, typename Value>
__device__ __forceinline__ void read_features(const Value* from, float* values) {
    const Features<Value, F> row = *reinterpret_cast<const Features<Value, F>*>(from);
    UNROLL
    for (int f = 0; f < F; ++f) values[f] = static_cast<float>(row.at[f]);
}

template <int F>
__device__ __forceinline__ bool all_zero(const float* values) {
    bool zero = true;
    UNROLL
    for (int f = 0; f < F; ++f) zero = zero && values[f] == 0.0f;
    return zero;
}

}  // namespace gridencoder

// Instantiates the launcher that LAUNCHER(D, F) declares for every compiled pair of D and F.
#define INSTANTIATE_SHAPES(LAUNCHER) \
    LAUNCHER(2, 1)                   \
    LAUNCHER(2, 2)                   \
    LAUNCHER(2, 4)                   \
    LAUNCHER(2, 8)                   \
    LAUNCHER(3, 1)                   \
    LAUNCHER(3, 2)                   \
    LAUNCHER(3, 4)                   \
    LAUNCHER(3, 8)
