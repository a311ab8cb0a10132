// Features of the hash grid. Four neighbouring threads share a sample: thread p of them takes levels p, p + 4, and so on. At each turn
// a warp so handles eight samples at four levels of much the same kind (the coarse ones dense, the fine ones hashed), a position is read once for all
// its levels, and the rows of [M, L * F] fill from one place. With a block a level instead, as in other hash grids, positions are read L times and each
// sector of a row is put together in the L2 cache from what several blocks write: on an H100 that took 1.7 times as long for 2^18 samples, and 2.8 times for 2^20.
#include "gridencoder_kernels.cuh"

namespace gridencoder {
namespace {

constexpr int parts = 4;  // threads a sample

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
    const int64_t i = thread_index() / parts;
    if (i >= samples) return;
    float position[D];
    UNROLL
    for (int d = 0; d < D; ++d) position[d] = positions[i * D + d];
    const bool inside = inside_unit_cube<D>(position);
    for (int l = threadIdx.x % parts; l < grid.levels; l += parts) {
        const Level level = grid.level<D>(l);
        float result[F] = {};
        if (level.entries > 0 && inside)
            with_known_index(level, [&](const Level& known) { interpolate<D, F>(position, table, known, grid.options, result); });
        Features<Value, F> row;
        UNROLL
        for (int f = 0; f < F; ++f) row.at[f] = static_cast<Value>(result[f]);
        *reinterpret_cast<Features<Value, F>*>(output + (i * grid.levels + l) * F) = row;
    }
}

}  // namespace

template <int D, int F, typename Value>
cudaError_t launch_forward(const float* positions, const Value* table, Grid grid, int64_t samples, Value* output, cudaStream_t stream) {
    if (samples == 0) return cudaSuccess;
    forward_kernel<D, F><<<blocks_for(samples * parts, 1), threads, 0, stream>>>(positions, table, grid, samples, output);
    return cudaGetLastError();
}

#define FORWARD(D, F)                                                                                                  \
    template cudaError_t launch_forward<D, F, float>(const float*, const float*, Grid, int64_t, float*, cudaStream_t); \
    template cudaError_t launch_forward<D, F, __half>(const float*, const __half*, Grid, int64_t, __half*, cudaStream_t);
INSTANTIATE_SHAPES(FORWARD)

}  // namespace gridencoder
