// CUDA kernels that choose hard samples. What the blocks must know of each other goes through global memory between launches: nobody waits.
//
//   score  reads delta [B, C] and writes scores [B] and the histogram, which a memset cleared: 20 bytes a row (C = 4), 8 us for 2^20 rows;
//   solve  one block reads the histogram (32 KB), follows tau and writes the draw: 5 us, most of it waiting at barriers;
//   keep   reads scores and noise and writes a bit for each row and a count for each block: 8 bytes a row, from L2, 3 us;
//   write  reads bits and counts and the rows that are kept, and writes these rows in order and zeros beyond them: 5 us.
//
// Law::all needs neither score nor solve: `visible` reads delta and writes what `keep` does.
#include "samplemining_cuda.h"

namespace samplemining {
namespace {

constexpr int lanes = 32;
constexpr unsigned every_lane = 0xffffffffu;
constexpr int tiles = block_rows / block_threads;  // rows of a thread, block_threads apart
constexpr int rest_room = 19;                      // of the 32 bits of a block's bin, those for the sum of 8 bits
static_assert(block_rows * ((1 << rest_bits) - 1) < (1 << rest_room) && block_rows < (1 << (32 - rest_room)), "a block's bin fits 32 bits");

template <typename Number>
__device__ __forceinline__ Number sum_of_lanes(Number x) {
#pragma unroll
    for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(every_lane, x, step);
    return x;
}

__device__ __forceinline__ int64_t rows_in_use(const Rows& rows) {
    const int64_t count = *rows.count;
    return count < 0 ? 0 : count < rows.rows ? count : rows.rows;
}

// WIDTH: floats that are read at once, 4 or 1. Where a row is read once more, for its scale, it lies in L1.
template <int WIDTH>
__device__ __forceinline__ float score_of_row(const Rows& rows, int64_t row) {
    const float* values = rows.delta + row * rows.columns;
    if (WIDTH == 4 && rows.columns == 4) {
        const float4 four = __ldg(reinterpret_cast<const float4*>(values));
        return score_of([=](int k) { return k == 0 ? four.x : k == 1 ? four.y : k == 2 ? four.z : four.w; }, 4);
    }
    return score_of([=](int k) { return __ldg(values + k); }, rows.columns);
}

template <int WIDTH>
__global__ void __launch_bounds__(block_threads)
    score_kernel(const __grid_constant__ Rows rows, float* __restrict__ scores, unsigned long long* __restrict__ histogram) {
    __shared__ uint32_t own[bins];
    for (int bin = threadIdx.x; bin < bins; bin += block_threads) own[bin] = 0;
    __syncthreads();
    const int64_t first = int64_t(blockIdx.x) * block_rows + threadIdx.x, used = rows_in_use(rows);
    float score[tiles];
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
        const int64_t row = first + tile * block_threads;
        score[tile] = row < used ? score_of_row<WIDTH>(rows, row) : absent;
    }
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
        const int64_t row = first + tile * block_threads;
        if (row < rows.rows) scores[row] = score[tile];
        if (score[tile] > 0) atomicAdd(&own[bin_of(score[tile])], (1u << rest_room) | rest_of(score[tile]));
    }
    __syncthreads();
    for (int bin = threadIdx.x; bin < bins; bin += block_threads) {
        const uint32_t packed = own[bin];
        if (packed) atomicAdd(&histogram[bin], packed_bin(packed >> rest_room, packed & ((1u << rest_room) - 1)));
    }
}

constexpr int solve_threads = 1024;
constexpr int own_bins = bins / solve_threads;  // of a thread, which are neighbours
constexpr int solve_warps = solve_threads / lanes;
static_assert(bins_of_exponent % own_bins == 0 && solve_warps == lanes, "a thread's bins have one exponent; a warp adds up all warps");

// Sums of two numbers over the block, in a fixed order; all threads get them.
__device__ __forceinline__ void sum_of_block(float& x, float& y) {
    __shared__ float2 of_warp[solve_warps];
    x = sum_of_lanes(x), y = sum_of_lanes(y);
    __syncthreads();  // the last call's sums have been read
    if (threadIdx.x % lanes == 0) of_warp[threadIdx.x / lanes] = make_float2(x, y);
    __syncthreads();
    const float2 other = of_warp[threadIdx.x % lanes];
    x = sum_of_lanes(other.x), y = sum_of_lanes(other.y);
}

// The sum of `own` over this thread and those behind it; `whole` becomes that over all.
__device__ __forceinline__ uint32_t sum_from_here(uint32_t own, uint32_t& whole) {
    __shared__ uint32_t of_warp[solve_warps];
    const int lane = threadIdx.x % lanes, warp = threadIdx.x / lanes;
    uint32_t sum = own;
#pragma unroll
    for (int step = 1; step < lanes; step *= 2) {
        const uint32_t behind = __shfl_down_sync(every_lane, sum, step);
        if (lane + step < lanes) sum += behind;
    }
    if (lane == 0) of_warp[warp] = sum;
    __syncthreads();
    const uint32_t other = of_warp[lane];
    whole = sum_of_lanes(other);
    return sum + sum_of_lanes(lane > warp ? other : 0u);
}

__global__ void __launch_bounds__(solve_threads)
    solve_kernel(const unsigned long long* __restrict__ histogram, const __grid_constant__ Rows rows, const __grid_constant__ Rule rule,
                 float* __restrict__ tau, Draw* __restrict__ draw) {
    __shared__ int largest, unit;
    __shared__ int64_t wanted;
    uint64_t packed[own_bins];
    uint32_t own = 0, scored;
    const int first = threadIdx.x * own_bins, exponent = exponent_of(first);
#pragma unroll
    for (int i = 0; i < own_bins; ++i) own += count_of(packed[i] = histogram[first + i]);
    if (threadIdx.x == 0) largest = unit = 1;
    const uint32_t from_here = sum_from_here(own, scored);  // its barrier comes before what follows
    if (own > 0 && from_here == own) largest = exponent;
    __syncthreads();

    float count[own_bins], mean[own_bins], sum = 0, sum_of_squares = 0;
#pragma unroll
    for (int i = 0; i < own_bins; ++i) {
        count[i] = static_cast<float>(count_of(packed[i]));
        mean[i] = packed[i] ? mean_of(first + i, packed[i], largest) : 0;
        sum += count[i] * mean[i], sum_of_squares += count[i] * mean[i] * mean[i];
    }
    sum_of_block(sum, sum_of_squares);
    if (threadIdx.x == 0) {  // in double, which is rare and slow on some GPUs: one thread
        const int64_t used = rows_in_use(rows);
        const float followed = followed_tau(*tau, static_cast<double>(used), sum, sum_of_squares, rule.momentum);
        *tau = followed;
        wanted = budget_of(rule, static_cast<double>(used), followed);
        if (wanted == 0) *draw = {0, 1};
        else if (rule.law == Law::uniform) *draw = {static_cast<float>(static_cast<double>(wanted) / static_cast<double>(used)), 1};
        else if (wanted >= scored) *draw = {HUGE_VALF, 1};
    }
    __syncthreads();
    const int64_t budget = wanted;
    if (budget == 0 || rule.law == Law::uniform || budget >= scored) return;

    if (from_here >= budget && from_here - own < budget) unit = exponent;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < own_bins; ++i) mean[i] = packed[i] ? mean_of(first + i, packed[i], unit) : 0;
    const auto expected = [&](float c, float& counts, float& slopes) {
        counts = slopes = 0;
        if (own > 0) {
#pragma unroll
            for (int i = 0; i < own_bins; ++i) add_expected(rule.law, c, count[i], mean[i], counts, slopes);
        }
        sum_of_block(counts, slopes);
    };
    const float c = solve(rule.law, static_cast<float>(budget), static_cast<float>(scored - budget), expected);
    if (threadIdx.x == 0) *draw = draw_of(c, unit);
}

// Writes a bit for each row of the block that decide(row) keeps, and how many they are.
template <typename Decide>
__device__ __forceinline__ void mark_rows(int64_t rows, const Decide& decide, uint32_t* __restrict__ keep, int32_t* __restrict__ kept) {
    const int64_t first = int64_t(blockIdx.x) * block_rows + threadIdx.x;
    bool chosen[tiles];
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
        const int64_t row = first + tile * block_threads;
        chosen[tile] = row < rows && decide(row);
    }
    int count = 0;
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
        const unsigned word = __ballot_sync(every_lane, chosen[tile]);
        if (threadIdx.x % lanes == 0) keep[(first + tile * block_threads) / word_rows] = word;
        count += __syncthreads_count(chosen[tile]);
    }
    if (threadIdx.x == 0) kept[blockIdx.x] = count;
}

__global__ void __launch_bounds__(block_threads)
    keep_kernel(const __grid_constant__ Rows rows, Law law, const float* __restrict__ scores, const Draw* __restrict__ draw,
                uint32_t* __restrict__ keep, int32_t* __restrict__ kept) {
    const Draw how = *draw;
    mark_rows(rows.rows, [=](int64_t row) { return __ldg(rows.noise + row) < probability(law, how, __ldg(scores + row)); }, keep, kept);
}

template <int WIDTH>
__global__ void __launch_bounds__(block_threads)
    visible_kernel(const __grid_constant__ Rows rows, uint32_t* __restrict__ keep, int32_t* __restrict__ kept) {
    const int64_t used = rows_in_use(rows);
    mark_rows(used, [=](int64_t row) { return score_of_row<WIDTH>(rows, row) > 0; }, keep, kept);
}

// The kept rows of all blocks before this one and of all blocks; all threads get them.
__device__ __forceinline__ void add_blocks(const int32_t* __restrict__ kept, int& before, int& whole) {
    __shared__ int2 of_warp[block_threads / lanes];
    before = whole = 0;
    for (unsigned block = threadIdx.x; block < gridDim.x; block += block_threads) {
        const int count = kept[block];
        whole += count, before += block < blockIdx.x ? count : 0;
    }
    before = sum_of_lanes(before), whole = sum_of_lanes(whole);
    if (threadIdx.x % lanes == 0) of_warp[threadIdx.x / lanes] = make_int2(before, whole);
    __syncthreads();
    before = whole = 0;
#pragma unroll
    for (int warp = 0; warp < block_threads / lanes; ++warp) before += of_warp[warp].x, whole += of_warp[warp].y;
}

__global__ void __launch_bounds__(block_threads)
    write_kernel(const __grid_constant__ Rows rows, const __grid_constant__ Rule rule, const float* __restrict__ scores,
                 const Draw* __restrict__ draw, const uint32_t* __restrict__ keep, const int32_t* __restrict__ kept,
                 const __grid_constant__ Chosen chosen) {
    __shared__ uint32_t words[block_words];
    if (threadIdx.x < block_words) words[threadIdx.x] = keep[int64_t(blockIdx.x) * block_words + threadIdx.x];
    int before, whole;
    add_blocks(kept, before, whole);  // its barrier comes before the words are read
    const int lane = threadIdx.x % lanes;
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
        const int word = tile * (block_threads / lanes) + threadIdx.x / lanes;
        int ahead = 0;
#pragma unroll
        for (int other = lane; other < block_words; other += lanes) ahead += other < word ? __popc(words[other]) : 0;
        const int place = before + sum_of_lanes(ahead) + __popc(words[word] & ((1u << lane) - 1));
        if (!(words[word] >> lane & 1) || place >= rule.room) continue;
        const int64_t row = int64_t(blockIdx.x) * block_rows + word * word_rows + lane;
        const float weight = rule.alpha == 0 || rule.law == Law::all ? 1 : weight_of(probability(rule.law, *draw, scores[row]), rule.alpha);
        chosen.index[place] = row;
        const float* from = rows.delta + row * rows.columns;
        float* to = chosen.gradient + int64_t(place) * rows.columns;
        for (int k = 0; k < rows.columns; ++k) to[k] = __ldg(from + k) * weight;
    }
    const int64_t full = whole < rule.room ? whole : rule.room, thread = int64_t(blockIdx.x) * block_threads + threadIdx.x;
    const int64_t stride = int64_t(gridDim.x) * block_threads;
    for (int64_t place = full + thread; place < rule.room; place += stride) chosen.index[place] = 0;
    for (int64_t i = full * rows.columns + thread; i < rule.room * rows.columns; i += stride) chosen.gradient[i] = 0;
    if (thread == 0) chosen.counts[0] = static_cast<int32_t>(full), chosen.counts[1] = whole;
}

}  // namespace

cudaError_t launch_thin(const Rows& rows, const Rule& rule, float* tau, const Scratch& scratch, const Chosen& chosen, cudaStream_t stream) {
    const auto blocks = static_cast<unsigned>(blocks_of(rows.rows));
    const bool wide = rows.columns == 4;
    if (rule.law == Law::all) {
        const auto visible = wide ? visible_kernel<4> : visible_kernel<1>;
        visible<<<blocks, block_threads, 0, stream>>>(rows, scratch.keep, scratch.kept);
    } else {
        const cudaError_t error = cudaMemsetAsync(scratch.histogram, 0, bins * sizeof *scratch.histogram, stream);
        if (error != cudaSuccess) return error;
        const auto score = wide ? score_kernel<4> : score_kernel<1>;
        score<<<blocks, block_threads, 0, stream>>>(rows, scratch.scores, scratch.histogram);
        solve_kernel<<<1, solve_threads, 0, stream>>>(scratch.histogram, rows, rule, tau, scratch.draw);
        keep_kernel<<<blocks, block_threads, 0, stream>>>(rows, rule.law, scratch.scores, scratch.draw, scratch.keep, scratch.kept);
    }
    write_kernel<<<blocks, block_threads, 0, stream>>>(rows, rule, scratch.scores, scratch.draw, scratch.keep, scratch.kept, chosen);
    return cudaGetLastError();
}

}  // namespace samplemining
