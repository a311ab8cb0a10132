// CUDA kernels of the hash grid. A thread handles one sample at one level; the level is blockIdx.y, so that the blocks in flight share
// one level, whose table (at most 2 MB in half precision) then stays in the L2 cache while all samples pass by.
//
// Next for speed: neighbouring threads write rows of [M, L * F] that lie L * F values apart, so a 32-byte sector is completed by several
// levels' blocks and relies on the L2 to merge them; staging the levels of a block of samples in shared memory writes whole rows. The
// gradient's atomics want the equal entries of a warp added up first, and shared-memory tables for the coarse levels.
#include "gridencoder_cuda.h"
#include "gridencoder_math.h"

namespace gridencoder {
namespace {

constexpr int threads = 256;

__device__ __forceinline__ int64_t thread_index() { return static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; }

// F features of one entry, read or written at once.
template <typename Value, int F>
struct alignas(sizeof(Value) * F) Features {
    Value at[F];
};

template <int D, int F, typename Value>
__device__ __forceinline__ void interpolate(const float* position, const Value* level_table, const Level& level, float* result) {
    const Corners<D, float> corners(position, level.resolution, level.dense);
    UNROLL
    for (int f = 0; f < F; ++f) result[f] = 0.0f;
    UNROLL
    for (int corner = 0; corner < (1 << D); ++corner) {
        const uint64_t entry = corners.index(corner, level.entries, level.dense);
        const Features<Value, F> values = *reinterpret_cast<const Features<Value, F>*>(level_table + entry * F);
        const float weight = corners.weight(corner);
        UNROLL
        for (int f = 0; f < F; ++f) result[f] += weight * static_cast<float>(values.at[f]);
    }
}

// Adds two neighbouring numbers, at once where the hardware can.
__device__ __forceinline__ void add_pair(float* target, float first, float second) {
#if __CUDA_ARCH__ >= 900
    atomicAdd(reinterpret_cast<float2*>(target), make_float2(first, second));
#else
    atomicAdd(target, first);
    atomicAdd(target + 1, second);
#endif
}

template <int F>
__device__ __forceinline__ void add_features(float* entry, const float (&values)[F]) {
    UNROLL
    for (int f = 0; f + 1 < F; f += 2) add_pair(entry + f, values[f], values[f + 1]);
    if constexpr (F % 2 == 1) atomicAdd(entry + F - 1, values[F - 1]);
}

template <int D, int F, typename Value>
__global__ void __launch_bounds__(threads) forward_kernel(const float* __restrict__ positions, const Value* __restrict__ table, Grid grid,
                                                          int64_t samples, Value* __restrict__ output) {
    const int64_t i = thread_index();
    if (i >= samples) return;
    const Level level = level_at<D>(grid.offsets, grid.resolutions, blockIdx.y, grid.entries);
    float position[D], result[F] = {};
    UNROLL
    for (int d = 0; d < D; ++d) position[d] = positions[i * D + d];
    if (level.entries > 0 && inside_unit_cube<D>(position)) interpolate<D, F>(position, table + level.offset * F, level, result);
    Features<Value, F> row;
    UNROLL
    for (int f = 0; f < F; ++f) row.at[f] = static_cast<Value>(result[f]);
    *reinterpret_cast<Features<Value, F>*>(output + (i * grid.levels + blockIdx.y) * F) = row;
}

template <int D, int F, typename Value>
__global__ void __launch_bounds__(threads) backward_kernel(const Value* __restrict__ grad, const float* __restrict__ positions, Grid grid,
                                                           int64_t samples, float* __restrict__ result) {
    const int64_t i = thread_index();
    if (i >= samples) return;
    const Features<Value, F> row = *reinterpret_cast<const Features<Value, F>*>(grad + (i * grid.levels + blockIdx.y) * F);
    float slope[F];
    bool zero = true;
    UNROLL
    for (int f = 0; f < F; ++f) {
        slope[f] = static_cast<float>(row.at[f]);
        zero = zero && slope[f] == 0.0f;
    }
    if (zero) return;  // what lies behind a surface has no gradient: most samples of a trained scene
    float position[D];
    UNROLL
    for (int d = 0; d < D; ++d) position[d] = positions[i * D + d];
    const Level level = level_at<D>(grid.offsets, grid.resolutions, blockIdx.y, grid.entries);
    if (level.entries == 0 || !inside_unit_cube<D>(position)) return;
    const Corners<D, float> corners(position, level.resolution, level.dense);
    float* level_result = result + level.offset * F;
    UNROLL
    for (int corner = 0; corner < (1 << D); ++corner) {
        const uint64_t entry = corners.index(corner, level.entries, level.dense);
        const float weight = corners.weight(corner);
        float share[F];
        UNROLL
        for (int f = 0; f < F; ++f) share[f] = weight * slope[f];
        add_features<F>(level_result + entry * F, share);
    }
}

template <int D, int F>
__global__ void __launch_bounds__(threads)
    total_variation_kernel(const float* __restrict__ table, Grid grid, const float* __restrict__ positions, int64_t samples,
                           const float* __restrict__ weight, float* __restrict__ gradient) {
    const int64_t i = thread_index();
    if (i >= samples) return;
    float position[D];
    UNROLL
    for (int d = 0; d < D; ++d) position[d] = positions[i * D + d];
    const Level level = level_at<D>(grid.offsets, grid.resolutions, blockIdx.y, grid.entries);
    if (level.entries == 0 || !inside_unit_cube<D>(position)) return;
    float* level_gradient = gradient + level.offset * F;
    const auto add = [&](uint64_t entry, int f, float value) { atomicAdd(level_gradient + entry * F + f, value); };
    total_variation_gradient<D, F>(position, table + level.offset * F, level, *weight / static_cast<float>(samples), add);
}

// A thread handles one number of the level blockIdx.y, then the one a whole grid further.
__global__ void __launch_bounds__(threads)
    weight_decay_kernel(const float* __restrict__ table, const int32_t* __restrict__ offsets, int64_t entries, int features,
                        const float* __restrict__ weight, float* __restrict__ gradient) {
    const int64_t first = offsets[blockIdx.y], end = offsets[blockIdx.y + 1];
    if (first < 0 || end <= first || end > entries) return;
    const Level level{first, static_cast<uint32_t>(end - first), 0, false};
    const float scale = *weight;
    const int64_t step = static_cast<int64_t>(gridDim.x) * threads;
    for (int64_t k = first * features + thread_index(); k < end * features; k += step)
        gradient[k] += weight_decay_gradient(table[k], scale, level, features);
}

dim3 blocks_for(int64_t samples, int levels) {
    return dim3(static_cast<unsigned>((samples + threads - 1) / threads), static_cast<unsigned>(levels));
}

}  // namespace

template <int D, int F, typename Value>
cudaError_t launch_forward(const float* positions, const Value* table, Grid grid, int64_t samples, Value* output, cudaStream_t stream) {
    if (samples == 0) return cudaSuccess;
    forward_kernel<D, F><<<blocks_for(samples, grid.levels), threads, 0, stream>>>(positions, table, grid, samples, output);
    return cudaGetLastError();
}

template <int D, int F, typename Value>
cudaError_t launch_backward(const Value* grad, const float* positions, Grid grid, int64_t samples, float* result, cudaStream_t stream) {
    if (samples == 0) return cudaSuccess;
    backward_kernel<D, F><<<blocks_for(samples, grid.levels), threads, 0, stream>>>(grad, positions, grid, samples, result);
    return cudaGetLastError();
}

template <int D, int F>
cudaError_t launch_total_variation(const float* table, Grid grid, const float* positions, int64_t samples, const float* weight,
                                   float* gradient, cudaStream_t stream) {
    if (samples == 0) return cudaSuccess;
    total_variation_kernel<D, F>
        <<<blocks_for(samples, grid.levels), threads, 0, stream>>>(table, grid, positions, samples, weight, gradient);
    return cudaGetLastError();
}

cudaError_t launch_weight_decay(const float* table, const int32_t* offsets, int levels, int64_t entries, int features, const float* weight,
                                float* gradient, cudaStream_t stream) {
    constexpr unsigned blocks = 256;  // a level: with 16 levels some 4,000, enough to fill any GPU
    weight_decay_kernel<<<dim3(blocks, static_cast<unsigned>(levels)), threads, 0, stream>>>(table, offsets, entries, features, weight,
                                                                                             gradient);
    return cudaGetLastError();
}

#define INSTANTIATE_VALUE(D, F, VALUE)                                                                                 \
    template cudaError_t launch_forward<D, F, VALUE>(const float*, const VALUE*, Grid, int64_t, VALUE*, cudaStream_t); \
    template cudaError_t launch_backward<D, F, VALUE>(const VALUE*, const float*, Grid, int64_t, float*, cudaStream_t);
#define INSTANTIATE(D, F)           \
    INSTANTIATE_VALUE(D, F, float)  \
    INSTANTIATE_VALUE(D, F, __half) \
    template cudaError_t launch_total_variation<D, F>(const float*, Grid, const float*, int64_t, const float*, float*, cudaStream_t);

INSTANTIATE(3, 2)

}  // namespace gridencoder
