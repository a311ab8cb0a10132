// The Instant-NGP field's gradients. A block takes 128 samples, 16 a warp: it runs the networks anew, keeps all activations in registers and goes
// back through them (exchange.cuh).
//
// Reads 64 + 12 + 16 bytes a sample, writes 64; 58 kFLOP and, above all, 5.8 KB of matrices, activations and gradients through shared memory: 13 us for 2^16
// samples on an H100, and the barriers between layers. Two blocks on a multiprocessor leave 128 registers a thread, and one tile of sums moves out of them
// once a turn.
#include "encode.cuh"
#include "exchange.cuh"
#include "launch.cuh"
#include "ngp.cuh"

namespace fusedfield {
namespace {

constexpr int START = 3;  // turns that take as long as loading the matrices and adding to their gradients, which each block does once

// Blocks that a multiprocessor shall hold at once, so that one works while the other waits: two, where there is shared memory for them.
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
constexpr int BLOCKS = 2;
#else
constexpr int BLOCKS = 1;
#endif

struct Block {
    alignas(16) __half matrices[Geometry::size + Colour::size];
    alignas(16) Exchange<WIDE> exchange;
};

// The tiles of the matrices' gradients that this warp sums: those of the small matrices are shared out among the warps.
struct Tiles {
    Tile first, second[2], last_or_colour, deep_colour;
    int w = warp(), v = warp() - WARPS / 2;

    __device__ void add_to(const NGPMatrices& matrices, float* sums) const {
        const Matrix *const g = matrices.geometry, *const c = matrices.colour;
        float* to[6] = {sums};
        const Matrix* const order[6] = {g, g + 1, g + 2, c, c + 1, c + 2};
        for (int i = 1; i < 6; ++i) to[i] = to[i - 1] + order[i - 1]->outputs * order[i - 1]->inputs;
        const auto add = [&](const Tile& tile, int i, int m, int n) {
            for_tile(tile, *order[i], m * TILE, n * TILE, [&](int index, float value) { atomicAdd(to[i] + index, value); });
        };
        add(first, 0, w % 4, w / 4);
        for (int n = 0; n < 2; ++n) add(second[n], 1, w % 4, w / 4 * 2 + n);
        if (v < 0) {
            add(last_or_colour, 2, 0, w);
            add(deep_colour, 4, w % 2, w / 2);
        } else {
            add(last_or_colour, 3, v % 2, v / 2);
            if (v < 2) add(deep_colour, 5, 0, v);
        }
    }
};

// The gradient at the colour network's outputs, and at the density logit in column 0, of rows g and g + 8; `left` rows of the tile are in use.
__device__ __forceinline__ void read_upstream(const float* gradient, float scale, int left, Rows<OUTPUTS>& colour, __half (&density)[2]) {
    colour = {};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = lane_row() + 8 * h;
        if (row >= left || lane() % 4 >= RAW / 2) continue;
        const float2 pair = *reinterpret_cast<const float2*>(gradient + row * RAW + lane_column());
        const __half2 scaled = __floats2half2_rn(pair.x * scale, pair.y * scale);
        density[h] = __low2half(scaled);  // of lanes q = 0
        colour.at[0][h] = lane() % 4 == 0 ? __halves2half2(__half{}, __high2half(scaled)) : scaled;
    }
}

__global__ void __launch_bounds__(THREADS, BLOCKS)
    backward_kernel(Stored<ENCODED> source, const float* __restrict__ directions, NGPMatrices matrices, Batch batch, Upstream upstream,
                    __half* __restrict__ of_encoding, __half* __restrict__ of_view, float* __restrict__ of_weights) {
    auto& block = shared_block<Block>();
    const Geometry geometry(matrices.geometry, block.matrices);
    const Colour colour(matrices.colour, block.matrices + Geometry::size);
    __syncthreads();
    const int used = used_rows(batch);
    const float scale = upstream.scale ? *upstream.scale : 1.0f;
    Tiles tiles;
    const int w = tiles.w, v = tiles.v;
    for (int start = blockIdx.x * ROWS; start < batch.rows; start += gridDim.x * ROWS) {
        const int first = start + warp() * TILE;
        const int left = tile_rows<1>(first, used), there = tile_rows<1>(first, batch.rows);
        Rows<ENCODED> of_x{};
        Rows<VIEW> of_directions{};
        if (start < used) {
            Rows<ENCODED> x[1];
            source.read({}, first, left, x);
            Rows<WIDE> hidden[1], deeper[1];
            Rows<Colour::inputs> joined[1];
            Rows<NARROW> thinner[1], thinnest[1];
            {
                Rows<GEOMETRY> geometric[1];
                geometry.run(x, hidden, deeper, geometric);
                join_view(geometric, directions + int64_t{first} * 3, left, joined);
                Rows<OUTPUTS> outputs[1];
                colour.run(joined, thinner, thinnest, outputs);
            }
            Rows<OUTPUTS> of_outputs;
            __half of_density[2];
            read_upstream(upstream.gradient + int64_t{first} * RAW, scale, left, of_outputs, of_density);
            share(block.exchange, 0, of_outputs, thinnest[0], [&](const auto& add) {
                if (v >= 0 && v < 2) add(tiles.deep_colour, 0, v);
            });
            Rows<NARROW> of_thinnest, of_thinner;
            multiply_back(of_outputs, colour.last, of_thinnest);
            back_through_relu(of_thinnest, thinnest[0]);
            share(block.exchange, 1, of_thinnest, thinner[0], [&](const auto& add) {
                if (v < 0) add(tiles.deep_colour, w % 2, w / 2);
            });
            multiply_back(of_thinnest, colour.second, of_thinner);
            back_through_relu(of_thinner, thinner[0]);
            share(block.exchange, 0, of_thinner, joined[0], [&](const auto& add) {
                if (v >= 0) add(tiles.last_or_colour, v % 2, v / 2);
            });
            Rows<Colour::inputs> of_joined;
            multiply_back(of_thinner, colour.first, of_joined);
            Rows<GEOMETRY> of_geometry;
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                of_geometry.at[0][k] = of_joined.at[0][k];
                of_directions.at[0][k] = of_joined.at[1][k];
            }
            if (lane() % 4 == 0) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const __half density = lane_row() + 8 * h < left ? of_density[h] : __half{};
                    of_geometry.at[0][h] = __halves2half2(density, __high2half(of_geometry.at[0][h]));
                }
            }
            share(block.exchange, 1, of_geometry, deeper[0], [&](const auto& add) {
                if (v < 0) add(tiles.last_or_colour, 0, w);
            });
            Rows<WIDE> of_deeper, of_hidden;
            multiply_back(of_geometry, geometry.last, of_deeper);
            back_through_relu(of_deeper, deeper[0]);
            share(block.exchange, 0, of_deeper, hidden[0], [&](const auto& add) {
                add(tiles.second[0], w % 4, w / 4 * 2);
                add(tiles.second[1], w % 4, w / 4 * 2 + 1);
            });
            multiply_back(of_deeper, geometry.second, of_hidden);
            back_through_relu(of_hidden, hidden[0]);
            share(block.exchange, 1, of_hidden, x[0], [&](const auto& add) { add(tiles.first, w % 4, w / 4); });
            multiply_back(of_hidden, geometry.first, of_x);
        }
        write_rows(of_x, of_encoding + int64_t{first} * ENCODED, there);
        if (of_view) write_rows(of_directions, of_view + int64_t{first} * VIEW, there);
    }
    if (blockIdx.x * ROWS < used) tiles.add_to(matrices, of_weights);
}

}  // namespace

cudaError_t launch_ngp_backward(Encoding given, const float* directions, NGPWeights weights, Batch batch, Upstream upstream, __half* of_encoding,
                                __half* of_view, float* of_weights, cudaStream_t stream) {
    return launch(backward_kernel, sizeof(Block), Work{batch.rows, ROWS, START}, stream, Stored<ENCODED>{given}, directions, NGPMatrices(weights), batch, upstream,
                  of_encoding, of_view, of_weights);
}

}  // namespace fusedfield
