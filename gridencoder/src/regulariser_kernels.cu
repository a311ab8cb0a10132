// Gradients of the total variation and of the mean square of the table, added in place.
#include "gridencoder_kernels.cuh"

namespace gridencoder {
namespace {

template <int D, int F>
__global__ void __launch_bounds__(threads)
    total_variation_kernel(const float* __restrict__ table, Grid grid, const float* __restrict__ positions, int64_t samples,
                           const float* __restrict__ weight, float* __restrict__ gradient) {
    const int64_t i = thread_index();
    if (i >= samples) return;
    float position[D];
    UNROLL
    for (int d = 0; d < D; ++d) position[d] = positions[i * D + d];
    const Level level = grid.level<D>(blockIdx.y);
    if (level.entries == 0 || !inside_unit_cube<D>(position)) return;
    float* level_gradient = gradient + level.offset * F;
    const auto add = [&](uint64_t entry, int f, float value) { atomicAdd(level_gradient + entry * F + f, value); };
    total_variation_gradient<D, F>(position, table + level.offset * F, level, grid.options, *weight / static_cast<float>(samples), add);
}

// A thread handles one number of the level blockIdx.y, then the one a whole grid further.
__global__ void __launch_bounds__(threads)
    weight_decay_kernel(const float* __restrict__ table, const int32_t* __restrict__ offsets, int64_t entries, int features,
                        const float* __restrict__ weight, float* __restrict__ gradient) {
    const int64_t first = offsets[blockIdx.y], end = offsets[blockIdx.y + 1];
    if (first < 0 || end <= first || end > entries) return;
    const float scale = *weight;
    const int64_t step = static_cast<int64_t>(gridDim.x) * threads;
    for (int64_t k = first * features + thread_index(); k < end * features; k += step)
        gradient[k] += weight_decay_gradient(table[k], scale, (end - first) * features);
}

}  // namespace

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

#define TOTAL_VARIATION(D, F) \
    template cudaError_t launch_total_variation<D, F>(const float*, Grid, const float*, int64_t, const float*, float*, cudaStream_t);
INSTANTIATE_SHAPES(TOTAL_VARIATION)

}  // namespace gridencoder
