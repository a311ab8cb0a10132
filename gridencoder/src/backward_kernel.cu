// Gradient of the features with respect to the table, summed by atomics. A thread handles one sample at the level blockIdx.y; lanes of a
// warp whose samples lie in one cell, as neighbours along a ray do at the coarse levels, are added up first.
//
// On an H100 with 2^18 samples of a real scene, 16 levels, F = 2: 33.5 M additions of two numbers take 1.08 ms one by one, most of it at
// the four coarsest levels; added up by runs 0.26 ms, and with neighbouring entries added together 0.23.
#include "gridencoder_kernels.cuh"
#include "warp_runs.cuh"

namespace gridencoder {
namespace {

// Adds shares [2^D * F] to the entries around a position. Corners that differ along x alone are often neighbours in memory: two entries of
// at most two numbers then go at once, if the level starts at an even entry and the pair is aligned.
template <int D, int F>
__device__ __forceinline__ void add_to_corners(const Corners<D, float>& corners, const float* shares, const Level& level, float* result) {
    float* level_result = result + level.offset * F;
    UNROLL
    for (int corner = 0; corner < (1 << D); corner += 2) {
        const uint32_t left = corners.index(corner, level), right = corners.index(corner + 1, level);
        const float* share = shares + corner * F;
        if (F <= 2 && (left ^ right) == 1u && level.offset % 2 == 0) {
            float both[2 * F];
            UNROLL
            for (int f = 0; f < 2 * F; ++f) both[f] = share[left < right ? f : (f + F) % (2 * F)];
            add_vector<2 * F>(level_result + uint64_t{left & ~1u} * F, both);
        } else {
            add_vector<F>(level_result + uint64_t{left} * F, share);
            add_vector<F>(level_result + uint64_t{right} * F, share + F);
        }
    }
}

// Every lane of the warp must call; `slope` is zero for lanes that are not active, whose position is any in the unit cube.
template <int D, int F>
__device__ __forceinline__ void scatter(bool active, const float* position, const float* slope, const Level& level, Options options,
                                        float* result) {
    const Corners<D, float> corners(position, level, options);
    bool continues = true;
    UNROLL
    for (int d = 0; d < D; ++d) {
        const bool low = __shfl_up_sync(whole_warp, corners.low[d], 1) == corners.low[d];
        const bool high = __shfl_up_sync(whole_warp, corners.high[d], 1) == corners.high[d];
        continues = continues & low & high;
    }
    const Runs runs(active, continues);
    float shares[(1 << D) * F];
    UNROLL
    for (int corner = 0; corner < (1 << D); ++corner) {
        const float weight = corners.weight(corner);
        UNROLL
        for (int f = 0; f < F; ++f) shares[corner * F + f] = weight * slope[f];
    }
    if (runs.worth_adding_up()) {
        runs.sum(shares);
        active = runs.head();
    }
    if (active) add_to_corners<D, F>(corners, shares, level, result);
}

template <int D, int F, typename Value>
__global__ void __launch_bounds__(threads) backward_kernel(const Value* __restrict__ grad, const float* __restrict__ positions, Grid grid,
                                                           int64_t samples, float* __restrict__ result) {
    const int64_t i = thread_index();
    const Level level = grid.level<D>(blockIdx.y);
    if (level.entries == 0) return;  // the whole block
    float slope[F] = {}, position[D] = {};
    if (i < samples) {
        read_features<F>(grad + (i * grid.levels + blockIdx.y) * F, slope);
        UNROLL
        for (int d = 0; d < D; ++d) position[d] = positions[i * D + d];
    }
    // What lies behind a surface has no gradient: most samples of a trained scene.
    const bool active = !all_zero<F>(slope) && inside_unit_cube<D>(position);
    if (!__any_sync(whole_warp, active)) return;
    UNROLL
    for (int f = 0; f < F; ++f) slope[f] = active ? slope[f] : 0.0f;
    UNROLL
    for (int d = 0; d < D; ++d) position[d] = active ? position[d] : 0.0f;
    scatter<D, F>(active, position, slope, level, grid.options, result);
}

}  // namespace

template <int D, int F, typename Value>
cudaError_t launch_backward(const Value* grad, const float* positions, Grid grid, int64_t samples, float* result, cudaStream_t stream) {
    if (samples == 0) return cudaSuccess;
    backward_kernel<D, F><<<blocks_for(samples, grid.levels), threads, 0, stream>>>(grad, positions, grid, samples, result);
    return cudaGetLastError();
}

#define BACKWARD(D, F)                                                                                                  \
    template cudaError_t launch_backward<D, F, float>(const float*, const float*, Grid, int64_t, float*, cudaStream_t); \
    template cudaError_t launch_backward<D, F, __half>(const __half*, const float*, Grid, int64_t, float*, cudaStream_t);
INSTANTIATE_SHAPES(BACKWARD)

}  // namespace gridencoder
