// Adding to a table in device memory when neighbouring lanes often want the same cell.
//
// Samples lie one behind the other along a ray, so at a coarse level a warp meets few cells, and additions to equal addresses queue up in
// the L2 cache (5 G/s for one address after the other, 65 to 80 G/s for scattered ones, on an H100). Lanes in the same cell are therefore
// added up within the warp first, and the first lane of each run adds the sum.
#pragma once

#include <cstdint>

namespace gridencoder {

constexpr unsigned whole_warp = 0xffffffffu;

// Adds N neighbouring numbers; from sm_90 on four or two at once, for which the target must be aligned to them.
template <int N>
__device__ __forceinline__ void add_vector(float* target, const float* values) {
    if constexpr (N >= 4) {
#if __CUDA_ARCH__ >= 900
        atomicAdd(reinterpret_cast<float4*>(target), make_float4(values[0], values[1], values[2], values[3]));
#else
        add_vector<2>(target, values);
        add_vector<2>(target + 2, values + 2);
#endif
        add_vector<N - 4>(target + 4, values + 4);
    } else if constexpr (N >= 2) {
#if __CUDA_ARCH__ >= 900
        atomicAdd(reinterpret_cast<float2*>(target), make_float2(values[0], values[1]));
#else
        atomicAdd(target, values[0]);
        atomicAdd(target + 1, values[1]);
#endif
        add_vector<N - 2>(target + 2, values + 2);
    } else if constexpr (N == 1) {
        atomicAdd(target, values[0]);
    }
}

// Runs of neighbouring lanes: `heads` marks the first lane of each, `lanes` all that are active, `end` is one past the last lane of this
// lane's run.
struct Runs {
    unsigned heads, lanes;
    int end;

    // `continues`: this lane and the one before it belong together. Every lane of the warp must call. Lanes that are not active end a run.
    __device__ Runs(bool active, bool continues) {
        const int lane = threadIdx.x & 31;
        const bool before = __shfl_up_sync(whole_warp, static_cast<int>(active), 1);
        heads = __ballot_sync(whole_warp, active && !(lane > 0 && before && continues));
        lanes = __ballot_sync(whole_warp, active);
        const unsigned breaks = heads | ~lanes;
        const unsigned later = lane == 31 ? 0u : breaks & (~0u << (lane + 1));
        end = later ? __ffs(later) - 1 : 32;
    }

    // Adding up costs five rounds of shuffles, which a quarter fewer additions repay. The same for all lanes.
    __device__ bool worth_adding_up() const { return 4 * __popc(heads) <= 3 * __popc(lanes); }

    __device__ bool head() const { return heads >> (threadIdx.x & 31) & 1; }

    // Adds up `values` over each run; the first lane of a run gets the sum. Every lane must call.
    template <int N>
    __device__ void sum(float (&values)[N]) const {
        const int lane = threadIdx.x & 31;
        UNROLL
        for (int step = 1; step < 32; step *= 2) {
            const bool within = lane + step < end;
            UNROLL
            for (int k = 0; k < N; ++k) {
                const float other = __shfl_down_sync(whole_warp, values[k], step);
                if (within) values[k] += other;
            }
        }
    }
};

}  // namespace gridencoder
