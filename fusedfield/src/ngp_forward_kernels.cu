// The Instant-NGP field without a graph: a warp takes 16 or 32 samples through grid and networks, all in registers.
//
// Reads 24 bytes a sample and its grid entries, or 12 and 64 of features; writes 8. Networks: 19 kFLOP a sample, 19 KB of matrices from shared
// memory for 32 samples: 22 us for 2^20 samples of either on an H100. What remains is the gather: 128 sectors of 32 bytes a sample, from L2.
#include "encode.cuh"
#include "launch.cuh"
#include "ngp.cuh"

namespace fusedfield {
namespace {

// Tiles of rows that a warp holds, and blocks that a multiprocessor shall hold at once. From memory: two tiles, so that each block of a matrix is
// read once for both. Gathered: more warps, which wait for the grid's entries side by side; with two tiles that took 1.2 times as long.
template <class Source>
struct Shape {
    static constexpr int tiles = 2, blocks = 2;
};
template <typename Value>
struct Shape<Gathered<ENCODED, Value>> {
    static constexpr int tiles = 1, blocks = 3;
};

template <class Source>
struct Block {
    typename Source::Shared source;
    alignas(16) __half matrices[Geometry::size + Colour::size];
};

template <class Source, bool DENSITY>
__global__ void __launch_bounds__(THREADS, Shape<Source>::blocks)
    forward_kernel(Source source, const float* __restrict__ directions, NGPMatrices matrices, Batch batch, __half* __restrict__ results) {
    constexpr int M = Shape<Source>::tiles;
    auto& block = shared_block<Block<Source>>();
    source.prepare(block.source);
    const Geometry geometry(matrices.geometry, block.matrices);
    const Colour colour = DENSITY ? Colour{} : Colour(matrices.colour, block.matrices + Geometry::size);
    __syncthreads();
    const int used = used_rows(batch);
    const __half density_start = matrices.start;
    for (int first = (blockIdx.x * WARPS + warp()) * M * TILE; first < batch.rows; first += gridDim.x * WARPS * M * TILE) {
        const int left = tile_rows<M>(first, used);
        Rows<OUTPUTS> outputs[M] = {};
        if (left > 0) {
            Rows<ENCODED> encoding[M];
            source.read(block.source, first, left, encoding);
            if (DENSITY) {
                Rows<WIDE> hidden[M], deeper[M];
                Rows<GEOMETRY> geometric[M];
                geometry.run(encoding, hidden, deeper, geometric);
#pragma unroll
                for (int m = 0; m < M; ++m) outputs[m] = geometric[m];
            } else {
                run_networks(geometry, colour, encoding, directions + int64_t{first} * 3, left, outputs);
            }
        }
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = first + TILE * m + 8 * h + lane_row();
                if (row >= batch.rows) continue;
                const __half2 pair = row < used ? outputs[m].at[0][h] : __half2{};
                if (lane() % 4 == 0) {
                    const __half logit = __hadd(__low2half(pair), row < used ? density_start : __half{});
                    if (DENSITY) results[row] = logit;
                    else *reinterpret_cast<__half2*>(results + int64_t{row} * RAW) = __halves2half2(logit, __high2half(pair));
                } else if (!DENSITY && lane() % 4 == 1) {
                    *reinterpret_cast<__half2*>(results + int64_t{row} * RAW + 2) = pair;
                }
            }
    }
}

template <bool DENSITY, class Source>
cudaError_t start(Source source, const float* directions, const NGPWeights& weights, Batch batch, __half* results, cudaStream_t stream) {
    return launch(forward_kernel<Source, DENSITY>, sizeof(Block<Source>), Work{batch.rows, WARPS * Shape<Source>::tiles * TILE}, stream, source, directions, NGPMatrices(weights),
                  batch, results);
}

}  // namespace

cudaError_t launch_ngp(Encoding given, const float* directions, NGPWeights weights, Batch batch, __half* raw, cudaStream_t stream) {
    return start<false>(Stored<ENCODED>{given}, directions, weights, batch, raw, stream);
}

template <typename Value>
cudaError_t launch_ngp(Positions<Value> given, const float* directions, NGPWeights weights, Batch batch, __half* raw, cudaStream_t stream) {
    return start<false>(Gathered<ENCODED, Value>{given}, directions, weights, batch, raw, stream);
}

template <typename Value>
cudaError_t launch_ngp_density(Positions<Value> given, NGPWeights weights, Batch batch, __half* logit, cudaStream_t stream) {
    return start<true>(Gathered<ENCODED, Value>{given}, nullptr, weights, batch, logit, stream);
}

#define GATHERED(VALUE)                                                                                               \
    template cudaError_t launch_ngp(Positions<VALUE>, const float*, NGPWeights, Batch, __half*, cudaStream_t);        \
    template cudaError_t launch_ngp_density(Positions<VALUE>, NGPWeights, Batch, __half*, cudaStream_t);
GATHERED(__half)
GATHERED(float)

}  // namespace fusedfield
