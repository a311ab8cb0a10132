// The proposal network (features -> 16 -> log density), forward and backward; warps on their own, 32 and 16 samples at a time.
//
// Forward reads 12 bytes a sample and its grid entries (half a megabyte a level, nearly all from L1), or its features, and writes 2; backward reads
// features and 4 bytes and writes as many features. Networks: 0.35 kFLOP a sample. So memory binds, but where it gathers: there the arithmetic of
// indices and weights does, some 1,000 instructions of a warp for 32 samples.
#include "encode.cuh"
#include "launch.cuh"
#include "matrices.cuh"

namespace fusedfield {
namespace {

constexpr int WIDTH = 16;  // of features (widened), hidden layer and output (widened)
constexpr int M = 2;       // tiles of rows that a warp holds on its way forward

struct ProposalMatrices {
    Matrix hidden, output;

    explicit ProposalMatrices(const ProposalWeights& weights)
        : hidden{weights.geometry[0], WIDTH, weights.inputs, 0, 0}, output{weights.geometry[1], 1, WIDTH, 0, 0} {}
};

struct Proposal {
    const __half *hidden, *output;
    static constexpr int size = 2 * stored_size<WIDTH, WIDTH>;

    __device__ Proposal(const ProposalMatrices& matrices, __half* shared) : hidden(shared) {
        __half* const end = load_matrix<WIDTH, WIDTH>(matrices.hidden, shared);
        load_matrix<WIDTH, WIDTH>(matrices.output, end);
        output = end;
    }
};

template <class Source>
struct ForwardBlock {
    typename Source::Shared source;
    alignas(16) __half matrices[Proposal::size];
};

template <class Source>
__global__ void __launch_bounds__(THREADS) forward_kernel(Source source, ProposalMatrices matrices, Batch batch, __half* __restrict__ logit) {
    auto& block = shared_block<ForwardBlock<Source>>();
    source.prepare(block.source);
    const Proposal network(matrices, block.matrices);
    __syncthreads();
    const int used = used_rows(batch);
    for (int first = (blockIdx.x * WARPS + warp()) * M * TILE; first < batch.rows; first += gridDim.x * WARPS * M * TILE) {
        Rows<WIDTH> outputs[M] = {};
        const int left = tile_rows<M>(first, used);
        if (left > 0) {
            Rows<WIDTH> encoding[M], hidden[M];
            source.read(block.source, first, left, encoding);
            multiply<WIDTH, WIDTH, M, true>(encoding, network.hidden, hidden);
            multiply<WIDTH, WIDTH, M, false>(hidden, network.output, outputs);
        }
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = first + TILE * m + 8 * h + lane_row();
                if (row < batch.rows && lane() % 4 == 0) logit[row] = row < used ? __low2half(outputs[m].at[0][h]) : __half{};
            }
    }
}

struct BackwardBlock {
    alignas(16) __half matrices[Proposal::size];
    alignas(16) __half rows[WARPS][2][TILE * (WIDTH + PAD)];  // gradient and activation of a layer, a warp's own
    float sums[2][WIDTH * WIDTH];
};

__global__ void __launch_bounds__(THREADS) backward_kernel(Stored<WIDTH> source, ProposalMatrices matrices, Batch batch, Upstream upstream,
                                                           __half* __restrict__ of_encoding, float* __restrict__ of_weights) {
    auto& block = shared_block<BackwardBlock>();
    const Proposal network(matrices, block.matrices);
    for (int i = threadIdx.x; i < 2 * WIDTH * WIDTH; i += THREADS) block.sums[i / (WIDTH * WIDTH)][i % (WIDTH * WIDTH)] = 0;
    __syncthreads();
    const int used = used_rows(batch), columns = source.given.columns;
    const float scale = upstream.scale ? *upstream.scale : 1.0f;
    __half *const down = block.rows[warp()][0], *const across = block.rows[warp()][1];
    Tile of_hidden_matrix, of_output_matrix;
    for (int first = (blockIdx.x * WARPS + warp()) * TILE; first < batch.rows; first += gridDim.x * WARPS * TILE) {
        const int left = tile_rows<1>(first, used);
        Rows<WIDTH> of_encoded{};
        if (left > 0) {
            Rows<WIDTH> encoding[1], hidden[1];
            source.read({}, first, left, encoding);
            multiply<WIDTH, WIDTH, 1, true>(encoding, network.hidden, hidden);
            Rows<WIDTH> of_output{}, of_hidden;
            if (lane() % 4 == 0) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const int row = lane_row() + 8 * h;
                    const float gradient = row < left ? upstream.gradient[first + row] * scale : 0.0f;
                    of_output.at[0][h] = __floats2half2_rn(gradient, 0.0f);
                }
            }
            const auto sum = [&](Tile& tile, const Rows<WIDTH>& gradient, const Rows<WIDTH>& activation) {
                __syncwarp();  // the rows of the layer before have been read
                store_rows(gradient, down, WIDTH + PAD);
                store_rows(activation, across, WIDTH + PAD);
                __syncwarp();
                tile.template add<TILE>(down, WIDTH + PAD, across, WIDTH + PAD);
            };
            sum(of_output_matrix, of_output, hidden[0]);
            multiply_back(of_output, network.output, of_hidden);
            back_through_relu(of_hidden, hidden[0]);
            sum(of_hidden_matrix, of_hidden, encoding[0]);
            multiply_back(of_hidden, network.hidden, of_encoded);
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const int row = first + lane_row() + k % 2 * 8, column = k / 2 * 8 + lane_column();
            if (row < batch.rows && column < columns) *reinterpret_cast<__half2*>(of_encoding + int64_t{row} * columns + column) = of_encoded.at[0][k];
        }
    }
    for_tile(of_hidden_matrix, matrices.hidden, 0, 0, [&](int index, float value) { atomicAdd(block.sums[0] + index, value); });
    for_tile(of_output_matrix, matrices.output, 0, 0, [&](int index, float value) { atomicAdd(block.sums[1] + index, value); });
    __syncthreads();
    if (blockIdx.x * WARPS * TILE >= used) return;
    const int of_hidden = WIDTH * matrices.hidden.inputs;
    for (int i = threadIdx.x; i < of_hidden + WIDTH; i += THREADS)
        atomicAdd(of_weights + i, i < of_hidden ? block.sums[0][i] : block.sums[1][i - of_hidden]);
}

template <class Source>
cudaError_t start(Source source, const ProposalWeights& weights, Batch batch, __half* logit, cudaStream_t stream) {
    return launch(forward_kernel<Source>, sizeof(ForwardBlock<Source>), Work{batch.rows, WARPS * M * TILE}, stream, source, ProposalMatrices(weights), batch, logit);
}

}  // namespace

cudaError_t launch_proposal(Encoding given, ProposalWeights weights, Batch batch, __half* logit, cudaStream_t stream) {
    return start(Stored<WIDTH>{given}, weights, batch, logit, stream);
}

template <typename Value>
cudaError_t launch_proposal(Positions<Value> given, ProposalWeights weights, Batch batch, __half* logit, cudaStream_t stream) {
    return start(GatheredByRow<WIDTH, Value>{given}, weights, batch, logit, stream);
}

template cudaError_t launch_proposal(Positions<__half>, ProposalWeights, Batch, __half*, cudaStream_t);
template cudaError_t launch_proposal(Positions<float>, ProposalWeights, Batch, __half*, cudaStream_t);

cudaError_t launch_proposal_backward(Encoding given, ProposalWeights weights, Batch batch, Upstream upstream, __half* of_encoding, float* of_weights,
                                     cudaStream_t stream) {
    return launch(backward_kernel, sizeof(BackwardBlock), Work{batch.rows, WARPS * TILE}, stream, Stored<WIDTH>{given}, ProposalMatrices(weights), batch, upstream,
                  of_encoding, of_weights);
}

}  // namespace fusedfield
