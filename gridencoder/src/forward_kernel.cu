// Features of the hash grid. A thread handles one sample at one level; the level is blockIdx.y, so that the blocks in flight share
// one level, whose table (2 MB in half precision with 2^19 entries of two features) then stays in the L2 cache while all samples pass by.
//
// Next for speed: neighbouring threads write rows of [M, L * F] that lie L * F values apart, so a 32-byte sector is completed by several
// levels' blocks and relies on the L2 to merge them; staging the levels of a block of samples in shared memory writes whole rows.
#include "gridencoder_kernels.cuh"

namespace gridencoder {
namespace {

template <int D, int F, typename Value>
__device__ __forceinline__ void interpolate(const float* position, const Value* table, const Level& level, Options options,
                                            float* result) {
    const Corners<D, float> corners(position, level, options);
    const Value* level_table = table + level.offset * F;
    UNROLL
    for (int corner = 0; corner < (1 << D); ++corner) {
        float values[F];
        read_features<F>(level_table + uint64_t{corners.index(corner, level)} * F, values);
        const float weight = corners.weight(corner);
        UNROLL
        for (int f = 0; f < F; ++f) result[f] += weight * values[f];
    }
}

template <int D, int F, typename Value>
__global__ void __launch_bounds__(threads) forward_kernel(const float* __restrict__ positions, const Value* __restrict__ table, Grid grid,
                                                          int64_t samples, Value* __restrict__ output) {
    const int64_t i = thread_index();
    if (i >= samples) return;
    const Level level = grid.level<D>(blockIdx.y);
    float position[D], result[F] = {};
    UNROLL
    for (int d = 0; d < D; ++d) position[d] = positions[i * D + d];
    if (level.entries > 0 && inside_unit_cube<D>(position))
        with_known_index(level, [&](const Level& known) { interpolate<D, F>(position, table, known, grid.options, result); });
    Features<Value, F> row;
    UNROLL
    for (int f = 0; f < F; ++f) row.at[f] = static_cast<Value>(result[f]);
    *reinterpret_cast<Features<Value, F>*>(output + (i * grid.levels + blockIdx.y) * F) = row;
}

}  // namespace

template <int D, int F, typename Value>
cudaError_t launch_forward(const float* positions, const Value* table, Grid grid, int64_t samples, Value* output, cudaStream_t stream) {
    if (samples == 0) return cudaSuccess;
    forward_kernel<D, F><<<blocks_for(samples, grid.levels), threads, 0, stream>>>(positions, table, grid, samples, output);
    return cudaGetLastError();
}

#define FORWARD(D, F)                                                                                                  \
    template cudaError_t launch_forward<D, F, float>(const float*, const float*, Grid, int64_t, float*, cudaStream_t); \
    template cudaError_t launch_forward<D, F, __half>(const float*, const __half*, Grid, int64_t, __half*, cudaStream_t);
INSTANTIATE_SHAPES(FORWARD)

}  // namespace gridencoder
