// Gradient of the features with respect to the positions. A thread handles one sample at all levels, so that its sum needs no atomics
// and is the same in every run; the table is read again rather than 2^D entries a sample and level kept from the forward pass.
#include "gridencoder_kernels.cuh"

namespace gridencoder {
namespace {

template <int D, int F, typename Value>
__global__ void __launch_bounds__(threads)
    backward_positions_kernel(const Value* __restrict__ grad, const float* __restrict__ positions, const Value* __restrict__ table,
                              Grid grid, int64_t samples, float* __restrict__ result) {
    const int64_t i = thread_index();
    if (i >= samples) return;
    float position[D], gradient[D] = {};
    UNROLL
    for (int d = 0; d < D; ++d) position[d] = positions[i * D + d];
    const int levels = inside_unit_cube<D>(position) ? grid.levels : 0;
#pragma unroll 1
    for (int l = 0; l < levels; ++l) {
        float slope[F];
        read_features<F>(grad + (i * grid.levels + l) * F, slope);
        const Level level = grid.level<D>(l);
        if (level.entries == 0 || all_zero<F>(slope)) continue;
        const Value* level_table = table + level.offset * F;
        const auto read = [&](uint64_t entry, float* values) { read_features<F>(level_table + entry * F, values); };
        add_position_gradient<D, F>(position, slope, level, grid.options, read, gradient);
    }
    UNROLL
    for (int d = 0; d < D; ++d) result[i * D + d] = gradient[d];
}

}  // namespace

template <int D, int F, typename Value>
cudaError_t launch_backward_positions(const Value* grad, const float* positions, const Value* table, Grid grid, int64_t samples,
                                      float* result, cudaStream_t stream) {
    if (samples == 0) return cudaSuccess;
    backward_positions_kernel<D, F><<<blocks_for(samples, 1), threads, 0, stream>>>(grad, positions, table, grid, samples, result);
    return cudaGetLastError();
}

#define BACKWARD_POSITIONS(D, F)                                                                                                    \
    template cudaError_t launch_backward_positions<D, F, float>(const float*, const float*, const float*, Grid, int64_t, float*,    \
                                                                cudaStream_t);                                                      \
    template cudaError_t launch_backward_positions<D, F, __half>(const __half*, const float*, const __half*, Grid, int64_t, float*, \
                                                                 cudaStream_t);
INSTANTIATE_SHAPES(BACKWARD_POSITIONS)

}  // namespace gridencoder
