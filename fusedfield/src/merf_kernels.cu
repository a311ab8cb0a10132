// The MeRF field without its shader (Reiser et al. 2023): features of a grid and three planes, summed -> 64 -> 8 limited outputs; forward and backward.
//
// Gathered, a sample reads 12 bytes and 160 entries of four halves (a grid's eight corners and three planes' four, eight levels), and writes 16: the
// arithmetic of indices and weights binds, some 5,000 instructions of a warp for 32 samples. From memory it reads 4 x 64 bytes; backward as many, and 32,
// and writes 64. Networks: 5 kFLOP a sample.
#include "exchange.cuh"
#include "launch.cuh"
#include "matrices.cuh"
#include "merf_encode.cuh"

namespace fusedfield {
namespace {

constexpr int HIDDEN = 64, OUTPUTS = 16, RAW = 8;  // the outputs widened to a tile, and those that are there

struct MerfMatrices {
    Matrix hidden, output;
    float density_limit, feature_limit;

    explicit MerfMatrices(const MerfWeights& weights)
        : hidden{weights.hidden, HIDDEN, ENCODED, 0, 0}, output{weights.output, RAW, HIDDEN, 0, 0}, density_limit(weights.density_limit), feature_limit(weights.feature_limit) {}

    __device__ float limit(int column) const { return column == 0 ? density_limit : feature_limit; }
};

struct Network {
    const __half *hidden, *output;
    static constexpr int size = stored_size<HIDDEN, ENCODED> + stored_size<OUTPUTS, HIDDEN>;

    __device__ Network(const MerfMatrices& matrices, __half* shared) : hidden(shared) {
        __half* const end = load_matrix<HIDDEN, ENCODED>(matrices.hidden, shared);
        load_matrix<OUTPUTS, HIDDEN>(matrices.output, end);
        output = end;
    }

    template <int M>
    __device__ __forceinline__ void run(const Rows<ENCODED> (&encoding)[M], Rows<HIDDEN> (&activation)[M], Rows<OUTPUTS> (&outputs)[M]) const {
        multiply<ENCODED, HIDDEN, M, true>(encoding, hidden, activation);
        multiply<HIDDEN, OUTPUTS, M, false>(activation, output, outputs);
    }
};

constexpr int M = 2;  // tiles of rows that a warp holds on its way forward

// Blocks that a multiprocessor shall hold at once: more of those that gather, whose warps wait for the grids' entries side by side.
template <class Source>
constexpr int BLOCKS = 2;
template <typename Value>
constexpr int BLOCKS<GatheredSum<Value>> = 3;

template <class Source>
struct Block {
    typename Source::Shared source;
    alignas(16) __half matrices[Network::size];
};

template <class Source, bool DENSITY>
__global__ void __launch_bounds__(THREADS, BLOCKS<Source>)
    forward_kernel(const __grid_constant__ Source source, MerfMatrices matrices, Batch batch, __half* __restrict__ results) {
    auto& block = shared_block<Block<Source>>();
    source.prepare(block.source);
    const Network network(matrices, block.matrices);
    __syncthreads();
    const int used = used_rows(batch);
    for (int first = (blockIdx.x * WARPS + warp()) * M * TILE; first < batch.rows; first += gridDim.x * WARPS * M * TILE) {
        const int left = tile_rows<M>(first, used);
        Rows<OUTPUTS> outputs[M] = {};
        if (left > 0) {
            Rows<ENCODED> encoding[M];
            Rows<HIDDEN> activation[M];
            source.read(block.source, first, left, encoding);
            network.run(encoding, activation, outputs);
        }
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = first + TILE * m + 8 * h + lane_row(), column = lane_column();
                if (row >= batch.rows) continue;
                const float2 pair = __half22float2(row < used ? outputs[m].at[0][h] : __half2{});
                const float low = matrices.limit(column), high = matrices.feature_limit;
                const __half2 limited = __floats2half2_rn(low * tanhf(pair.x / low), high * tanhf(pair.y / high));
                if (!DENSITY) *reinterpret_cast<__half2*>(results + int64_t{row} * RAW + column) = limited;
                else if (column == 0) results[row] = __low2half(limited);
            }
    }
}

struct BackwardBlock {
    alignas(16) __half matrices[Network::size];
    alignas(16) Exchange<HIDDEN> exchange;
};

// The gradient before the limits, of rows g and g + 8: that of limit tanh(x / limit) is 1 - tanh^2.
__device__ __forceinline__ void read_upstream(const float* gradient, float scale, int left, const MerfMatrices& matrices, const Rows<OUTPUTS>& outputs,
                                              Rows<OUTPUTS>& before) {
    before = {};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = lane_row() + 8 * h, column = lane_column();
        if (row >= left) continue;
        const float2 pair = *reinterpret_cast<const float2*>(gradient + row * RAW + column), output = __half22float2(outputs.at[0][h]);
        const float low = tanhf(output.x / matrices.limit(column)), high = tanhf(output.y / matrices.feature_limit);
        before.at[0][h] = __floats2half2_rn(pair.x * scale * (1 - low * low), pair.y * scale * (1 - high * high));
    }
}

__global__ void __launch_bounds__(THREADS) backward_kernel(StoredSum source, MerfMatrices matrices, Batch batch, Upstream upstream, __half* __restrict__ of_encoding,
                                                           float* __restrict__ of_weights) {
    auto& block = shared_block<BackwardBlock>();
    const Network network(matrices, block.matrices);
    __syncthreads();
    const int used = used_rows(batch), w = warp();
    const float scale = upstream.scale ? *upstream.scale : 1.0f;
    Tile of_hidden_matrix, of_output_matrix;  // the tiles that this warp sums; of the output's matrix there are four
    for (int start = blockIdx.x * ROWS; start < batch.rows; start += gridDim.x * ROWS) {
        const int first = start + w * TILE;
        Rows<ENCODED> of_x{};
        if (start < used) {
            const int left = tile_rows<1>(first, used);
            Rows<ENCODED> x[1];
            Rows<HIDDEN> activation[1], of_hidden;
            Rows<OUTPUTS> outputs[1], of_outputs;
            source.read({}, first, left, x);
            network.run(x, activation, outputs);
            read_upstream(upstream.gradient + int64_t{first} * RAW, scale, left, matrices, outputs[0], of_outputs);
            share(block.exchange, 0, of_outputs, activation[0], [&](const auto& add) {
                if (w < HIDDEN / TILE) add(of_output_matrix, 0, w);
            });
            multiply_back(of_outputs, network.output, of_hidden);
            back_through_relu(of_hidden, activation[0]);
            share(block.exchange, 1, of_hidden, x[0], [&](const auto& add) { add(of_hidden_matrix, w % 4, w / 4); });
            multiply_back(of_hidden, network.hidden, of_x);
        }
        write_rows(of_x, of_encoding + int64_t{first} * ENCODED, tile_rows<1>(first, batch.rows));
    }
    if (blockIdx.x * ROWS >= used) return;
    for_tile(of_hidden_matrix, matrices.hidden, w % 4 * TILE, w / 4 * TILE, [&](int index, float value) { atomicAdd(of_weights + index, value); });
    if (w < HIDDEN / TILE)
        for_tile(of_output_matrix, matrices.output, 0, w * TILE, [&](int index, float value) { atomicAdd(of_weights + HIDDEN * ENCODED + index, value); });
}

template <bool DENSITY, class Source>
cudaError_t start(const Source& source, const MerfWeights& weights, Batch batch, __half* results, cudaStream_t stream) {
    return launch(forward_kernel<Source, DENSITY>, sizeof(Block<Source>), Work{batch.rows, WARPS * M * TILE}, stream, source, MerfMatrices(weights), batch,
                  results);
}

}  // namespace

cudaError_t launch_merf(MerfEncodings given, MerfWeights weights, Batch batch, __half* raw, cudaStream_t stream) {
    return start<false>(StoredSum{given}, weights, batch, raw, stream);
}

template <typename Value>
cudaError_t launch_merf(MerfPositions<Value> given, MerfWeights weights, Batch batch, __half* raw, cudaStream_t stream) {
    return start<false>(GatheredSum<Value>{given}, weights, batch, raw, stream);
}

template <typename Value>
cudaError_t launch_merf_density(MerfPositions<Value> given, MerfWeights weights, Batch batch, __half* logit, cudaStream_t stream) {
    return start<true>(GatheredSum<Value>{given}, weights, batch, logit, stream);
}

#define GATHERED(VALUE)                                                                                   \
    template cudaError_t launch_merf(MerfPositions<VALUE>, MerfWeights, Batch, __half*, cudaStream_t);    \
    template cudaError_t launch_merf_density(MerfPositions<VALUE>, MerfWeights, Batch, __half*, cudaStream_t);
GATHERED(__half)
GATHERED(float)

cudaError_t launch_merf_backward(MerfEncodings given, MerfWeights weights, Batch batch, Upstream upstream, __half* of_encoding, float* of_weights,
                                 cudaStream_t stream) {
    return launch(backward_kernel, sizeof(BackwardBlock), Work{batch.rows, ROWS}, stream, StoredSum{given}, MerfMatrices(weights), batch, upstream, of_encoding, of_weights);
}

}  // namespace fusedfield
