// The CUDA kernels: a warp a ray, whose lanes take 32 neighbouring intervals at once; warps stride over all rays, also those not in use,
// whose results are zeros. Expected times are for N = 5461 rays on an H100, whose warps fit it all at once:
//
//   place       reads 4 bytes an interval and writes 36: 56 MB at S = 256, 0.02 ms; 0.004 ms at 48;
//   resample    reads 6 (half) or 8 bytes an interval and writes 4, writes 4 bytes a new edge; what lies between is in shared memory.
//               16 MB for 256 to 96 intervals: the memory takes 0.005 ms, and as much again the sums and searches, 0.01 ms;
//   interlevel  reads 6 or 8 bytes a proposal interval, twice (the second time from a cache), 8 bytes a reference interval and writes 4
//               bytes a proposal interval: 16 MB for 48 against 256 intervals, 0.012 ms. A memset of the loss comes before it.
#include "raysampling_cuda.h"

namespace raysampling {
namespace {

constexpr int lanes = 32, block_threads = 128, block_warps = block_threads / lanes;
constexpr int blocks_a_multiprocessor = 12;  // resident at once on every GPU from sm_80 on: 40 registers a thread
constexpr int most_blocks_a_multiprocessor = 16;
constexpr unsigned every_lane = 0xffffffffu;

__device__ __forceinline__ int lane_of_thread() { return threadIdx.x % lanes; }
__device__ __forceinline__ int warp_of_thread() { return threadIdx.x / lanes; }
__device__ __forceinline__ int64_t first_ray() { return int64_t(blockIdx.x) * block_warps + warp_of_thread(); }
__device__ __forceinline__ int64_t ray_stride() { return int64_t(gridDim.x) * block_warps; }

// The sum of x over the lanes up to this one.
__device__ __forceinline__ float sum_up_to_lane(float x) {
#pragma unroll
    for (int step = 1; step < lanes; step *= 2) {
        const float other = __shfl_up_sync(every_lane, x, step);
        if (lane_of_thread() >= step) x += other;
    }
    return x;
}

// ------------------------------------------------------------------------------------------------------------------- placing

// Positions go through shared memory, so that the lanes write neighbouring numbers.
__global__ void __launch_bounds__(block_threads, blocks_a_multiprocessor)
    place_kernel(const __grid_constant__ Placing<float> placing, const __grid_constant__ Placed placed) {
    __shared__ float staged[block_warps][3 * lanes];
    const int lane = lane_of_thread();
    float* const mine = staged[warp_of_thread()];
    const int64_t used = placing.rays.used();
    for (int64_t ray = first_ray(); ray < placing.rays.rays; ray += ray_stride()) {
        const Spacing<float> spacing = spacing_of(placing.rays, used, ray);
        for (int start = 0; start < placing.intervals; start += lanes) {
            const int64_t first = ray * placing.intervals + start;
            const int here = placing.intervals - start < lanes ? placing.intervals - start : lanes;
            if (lane < here) {
                const Sample<float> sample = sample_at(placing, spacing, ray, start + lane);
                placed.t[first + lane] = sample.t;
                placed.dt[first + lane] = sample.dt;
                placed.ray_index[first + lane] = spacing.empty ? -1 : static_cast<int32_t>(ray);
#pragma unroll
                for (int i = 0; i < 3; ++i) mine[3 * lane + i] = sample.position[i];
            }
            __syncwarp();
#pragma unroll
            for (int k = 0; k < 3; ++k) {
                const int entry = k * lanes + lane;
                if (entry >= 3 * here) continue;
                placed.positions[3 * first + entry] = mine[entry];
                placed.directions[3 * first + entry] = spacing.empty ? 0.f : __ldg(placing.directions + 3 * ray + entry % 3);
            }
            __syncwarp();
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------- resampling

template <typename Logit>
__global__ void __launch_bounds__(block_threads, blocks_a_multiprocessor)
    resample_kernel(const __grid_constant__ Resampling<Logit, float> resampling, float* __restrict__ new_edges,
                    float* __restrict__ weights) {
    extern __shared__ float shared[];
    const int lane = lane_of_thread(), intervals = resampling.intervals;
    float* const cumulative = shared + warp_of_thread() * (intervals + 1);
    const float exponent = exponent_of(resampling.anneal);
    const int64_t used = resampling.rays.used();
    for (int64_t ray = first_ray(); ray < resampling.rays.rays; ray += ray_stride()) {
        const Spacing<float> spacing = spacing_of(resampling.rays, used, ray);
        const float* edges = resampling.edges + ray * (intervals + 1);
        const Logit* logit = resampling.logit + ray * intervals;
        float depth = 0, mass = 0;  // of all intervals before these 32
        bool seen = false;
        if (lane == 0) cumulative[0] = 0;
        for (int start = 0; start < intervals; start += lanes) {
            const int k = start + lane;
            const bool inside = k < intervals;
            const float tau = inside ? optical_depth(static_cast<float>(logit[k]), length_of(spacing, edges[k], edges[k + 1])) : 0.f;
            const float through = sum_up_to_lane(tau), before = __shfl_up_sync(every_lane, through, 1);
            const float weight = weight_of(lane ? depth + before : depth, tau);
            depth += __shfl_sync(every_lane, through, lanes - 1);
            const float sum = mass + sum_up_to_lane(inside ? mass_of(weight, exponent, resampling.padding) : 0.f);
            mass = __shfl_sync(every_lane, sum, lanes - 1);
            seen = seen || weight > 0;
            if (!inside) continue;
            weights[ray * intervals + k] = weight;
            cumulative[k + 1] = sum;
        }
        __syncwarp();
        const bool even = !__any_sync(every_lane, seen) || !usable(cumulative[intervals]);
        float last = -HUGE_VALF;
        for (int start = 0; start <= resampling.wanted; start += lanes) {
            const int j = start + lane;
            float edge = last;
            if (j <= resampling.wanted) edge = edge_at(quantile_of(resampling, ray, j), edges, cumulative, intervals, even);
            if (edge < last) edge = last;
#pragma unroll
            for (int step = 1; step < lanes; step *= 2) {
                const float other = __shfl_up_sync(every_lane, edge, step);
                if (lane >= step && edge < other) edge = other;
            }
            last = __shfl_sync(every_lane, edge, lanes - 1);
            if (j <= resampling.wanted) new_edges[ray * (resampling.wanted + 1) + j] = edge;
        }
        __syncwarp();  // all lanes have read what the next ray overwrites
    }
}

// ------------------------------------------------------------------------------------------------------------ interlevel loss

// The gradient of one ray, from the back: V is a chain of affine maps v -> a v + b over the lanes, composed from the last.
template <typename Logit>
__device__ __forceinline__ void gradient_of_ray(const Interlevel<Logit, float>& interlevel, const Spacing<float>& spacing, int64_t ray,
                                                const float* depth, const float* pulls, float* __restrict__ gradient) {
    const int lane = lane_of_thread(), intervals = interlevel.intervals;
    const float *edges = interlevel.edges + ray * (intervals + 1), *edges_ref = interlevel.edges_ref + ray * (interlevel.intervals_ref + 1);
    float V = 0;  // behind these 32 intervals
    for (int start = (intervals - 1) / lanes * lanes; start >= 0; start -= lanes) {
        const int k = start + lane;
        const bool inside = k < intervals;
        float g = 0, a = 1, b = 0, length = 0, logit = 0;
        if (inside) {
            const float left = edges[k], right = edges[k + 1];
            logit = static_cast<float>(interlevel.logit[ray * intervals + k]);
            length = length_of(spacing, left, right);
            const float tau = optical_depth(logit, length);
            g = weight_gradient(pulls, overlap(edges_ref, interlevel.intervals_ref, left, right));
            a = std::exp(-tau), b = -std::expm1(-tau) * g;
        }
#pragma unroll
        for (int step = 1; step < lanes; step *= 2) {  // after it: V before this lane's interval = a * V behind the 32 + b
            const float later_a = __shfl_down_sync(every_lane, a, step), later_b = __shfl_down_sync(every_lane, b, step);
            if (lane + step < lanes) b += a * later_b, a *= later_a;
        }
        const float before = a * V + b, next = __shfl_down_sync(every_lane, before, 1);
        if (inside) gradient[ray * intervals + k] = logit_gradient(g, lane == lanes - 1 ? V : next, depth[k + 1], length, logit);
        V = __shfl_sync(every_lane, before, 0);
    }
}

// loss must be zero.
template <typename Logit>
__global__ void __launch_bounds__(block_threads, blocks_a_multiprocessor)
    interlevel_kernel(const __grid_constant__ Interlevel<Logit, float> interlevel, float* __restrict__ gradient, float* loss) {
    extern __shared__ float shared[];
    __shared__ float losses[block_warps];
    const int lane = lane_of_thread(), intervals = interlevel.intervals, intervals_ref = interlevel.intervals_ref;
    float* const depth = shared + warp_of_thread() * (intervals + 1 + intervals_ref);
    float* const pulls = depth + intervals + 1;
    const int64_t used = interlevel.rays.used();
    const float share = 1.f / static_cast<float>(used > 1 ? used : 1);
    float sum = 0;
    for (int64_t ray = first_ray(); ray < interlevel.rays.rays; ray += ray_stride()) {
        const Spacing<float> spacing = spacing_of(interlevel.rays, used, ray);
        if (spacing.empty) {
            for (int k = lane; k < intervals; k += lanes) gradient[ray * intervals + k] = 0;
            continue;
        }
        const float *edges = interlevel.edges + ray * (intervals + 1), *edges_ref = interlevel.edges_ref + ray * (intervals_ref + 1);
        float whole = 0;
        if (lane == 0) depth[0] = 0;
        for (int start = 0; start < intervals; start += lanes) {
            const int k = start + lane;
            float tau = 0;
            if (k < intervals) {
                const float logit = static_cast<float>(interlevel.logit[ray * intervals + k]);
                tau = optical_depth(logit, length_of(spacing, edges[k], edges[k + 1]));
            }
            const float behind = whole + sum_up_to_lane(tau);
            whole = __shfl_sync(every_lane, behind, lanes - 1);
            if (k < intervals) depth[k + 1] = behind;
        }
        __syncwarp();
        for (int i = lane; i < intervals_ref; i += lanes) {
            const float bound = weight_between(depth, overlap(edges, intervals, edges_ref[i], edges_ref[i + 1]));
            const Excess<float> excess = excess_of(interlevel.weights_ref[ray * intervals_ref + i], bound, share);
            sum += excess.loss;
            pulls[i] = excess.pull;
        }
        __syncwarp();
        gradient_of_ray(interlevel, spacing, ray, depth, pulls, gradient);
        __syncwarp();  // all lanes have read what the next ray overwrites
    }
#pragma unroll
    for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(every_lane, sum, step);
    if (lane == 0) losses[warp_of_thread()] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        float total = 0;
        for (int warp = 0; warp < block_warps; ++warp) total += losses[warp];
        atomicAdd(loss, total);
    }
}

// Blocks for all rays, but no more than are worth starting.
cudaError_t blocks_for(int64_t rays, unsigned& blocks) {
    int device = 0, multiprocessors = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    const int64_t wanted = (rays + block_warps - 1) / block_warps, most = int64_t(multiprocessors) * most_blocks_a_multiprocessor;
    blocks = static_cast<unsigned>(wanted < most ? wanted : most);
    return error;
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t rays, size_t floats_a_warp, cudaStream_t stream, const Arguments&... arguments) {
    if (rays == 0) return cudaSuccess;
    unsigned blocks = 0;
    const cudaError_t error = blocks_for(rays, blocks);
    if (error != cudaSuccess) return error;
    kernel<<<blocks, block_threads, floats_a_warp * block_warps * sizeof(float), stream>>>(arguments...);
    return cudaGetLastError();
}

constexpr size_t shared_most = 48 * 1024;  // of a block without asking for more
static_assert(block_warps * (2 * most_intervals + 1 + 1) * sizeof(float) <= shared_most, "the longest rays fit shared memory");

}  // namespace

cudaError_t launch_place(const Placing<float>& placing, const Placed& placed, cudaStream_t stream) {
    return launch(place_kernel, placing.rays.rays, 0, stream, placing, placed);
}

template <typename Logit>
cudaError_t launch_resample(const Resampling<Logit, float>& resampling, float* new_edges, float* weights, cudaStream_t stream) {
    return launch(resample_kernel<Logit>, resampling.rays.rays, resampling.intervals + 1, stream, resampling, new_edges, weights);
}

template <typename Logit>
cudaError_t launch_interlevel(const Interlevel<Logit, float>& interlevel, float* gradient, float* loss, cudaStream_t stream) {
    const cudaError_t error = cudaMemsetAsync(loss, 0, sizeof *loss, stream);
    if (error != cudaSuccess) return error;
    const size_t floats = interlevel.intervals + 1 + interlevel.intervals_ref;
    return launch(interlevel_kernel<Logit>, interlevel.rays.rays, floats, stream, interlevel, gradient, loss);
}

template cudaError_t launch_resample(const Resampling<float, float>&, float*, float*, cudaStream_t);
template cudaError_t launch_resample(const Resampling<__half, float>&, float*, float*, cudaStream_t);
template cudaError_t launch_interlevel(const Interlevel<float, float>&, float*, float*, cudaStream_t);
template cudaError_t launch_interlevel(const Interlevel<__half, float>&, float*, float*, cudaStream_t);

}  // namespace raysampling
