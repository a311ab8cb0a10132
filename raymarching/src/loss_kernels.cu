// The CUDA form of the loss, one launch: a warp a ray, as in composite_kernels.cu, but only over the rays that were kept, whose number is
// read here; warps stride over them, for the rows of `rays` are often many times as many.
//
// A sample costs 8 (half) or 16 bytes of raw and 4 of dt, read once for a ray's last 32 samples and, from a cache, twice for those before;
// 16 bytes of delta are written. At 2^20 samples in half that is 29 MB, 0.01 ms at 3 TB/s; with the arithmetic (some 10 exponentials a
// sample) about 0.025 ms is expected.
//
// Nothing is kept between the two walks along a ray but the transmittance before each 32 samples, in the first of their rows of delta.
//
// Distortion, fading near the camera and weights share a second form of the kernel, so that the plain one keeps its registers. They read 8
// bytes of spacing a sample as often as raw, 4 of t once, and write 4 of weights: 46 MB at 2^20 samples in half with all three, 0.015 ms at
// 3 TB/s; with the arithmetic (10 more shuffles a sample) about 0.035 ms is expected.
#include "lanes.cuh"
#include "launch.cuh"
#include "loss_cuda.h"

namespace raymarching {
namespace {

constexpr int WARPS = THREADS / LANES;
// All resident at once on every GPU from sm_80 on, with 56 registers a thread in the plain form and 64 in the extended one.
template <bool EXTENDED>
constexpr int BLOCKS_A_MULTIPROCESSOR = EXTENDED ? 8 : 9;

// One read for a row.
__device__ __forceinline__ void read_row(const float* raw, int64_t sample, float row[RAW]) {
  const float4 whole = reinterpret_cast<const float4*>(raw)[sample];
  row[0] = whole.x, row[1] = whole.y, row[2] = whole.z, row[3] = whole.w;
}

__device__ __forceinline__ void read_row(const __half* raw, int64_t sample, float row[RAW]) {
  const uint2 whole = reinterpret_cast<const uint2*>(raw)[sample];
  const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&whole.x));
  const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&whole.y));
  row[0] = low.x, row[1] = low.y, row[2] = high.x, row[3] = high.y;
}

// What a lane knows of its sample in a block of 32 along the ray.
struct Lane {
  Activated<float> sample;
  float weight, behind;  // transmittance behind the sample
  bool inside, counts;   // inside the ray; and also not behind the sample at which the ray stopped
};

// The block's sample of this lane; T is the transmittance before the block and becomes that behind its last sample that counts. `stopped`
// is set, in all lanes, where the ray's transmittance falls below the threshold.
template <class Raw>
__device__ __forceinline__ Lane lane_of(const LossProblem<Raw, float>& problem, const Span& span, int start, float& T, bool& stopped) {
  const int lane = threadIdx.x % LANES;
  Lane here;
  here.inside = start + lane < span.count;
  float row[RAW] = {}, dt = 0;  // outside the ray: no length, so it changes nothing
  if (here.inside) {
    read_row(problem.raw, span.first + start + lane, row);
    dt = problem.dt[span.first + start + lane];
  }
  here.sample = activate(row, dt);
  const float product = product_up_to(here.sample.through, lane);
  const float previous = __shfl_up_sync(ALL, product, 1);
  here.weight = (lane ? T * previous : T) * here.sample.alpha;
  here.behind = T * product;
  const unsigned below = __ballot_sync(ALL, here.inside && here.behind < problem.T_thresh);
  here.counts = here.inside && (below == 0 || lane < __ffs(below));
  stopped = below != 0;
  T = __shfl_sync(ALL, here.behind, below ? __ffs(below) - 1 : LANES - 1);
  return here;
}

// The interval of a sample, one read; zero where it is not needed.
template <class Raw>
__device__ __forceinline__ Interval<float> read_interval(const LossProblem<Raw, float>& problem, int64_t sample, bool needed) {
  if (!needed) return {};
  const float2 ends = reinterpret_cast<const float2*>(problem.spacing)[sample];
  return {(ends.x + ends.y) / 2, ends.y - ends.x};
}

// One ray, whose samples are `span`, by one warp. Returns the ray's part of the loss, in all lanes.
template <bool EXTENDED, class Raw>
__device__ __forceinline__ PixelLoss<float> warp_ray(const LossProblem<Raw, float>& problem, int64_t ray, const Span& span, float share,
                                                     float4* delta, float* weights) {
  const int lane = threadIdx.x % LANES;
  const Pixel<float> pixel = pixel_of(problem, ray);
  float4* const rows = delta + span.first;
  float T = 1, opacity = 0, moment = 0, sum[COLOURS] = {};
  bool stopped = false;
  const bool distorts = EXTENDED && problem.distorts();
  Lane here;
  Interval<float> interval{};
  int start = 0;
  for (; start < span.count && !stopped; start += LANES) {
    if (start > 0 && lane == 0) rows[start].x = T;
    here = lane_of(problem, span, start, T, stopped);
    if (EXTENDED) interval = read_interval(problem, span.first + start + lane, distorts && here.counts);
    if (!here.counts) continue;
    opacity += here.weight;
    if (EXTENDED) moment += here.weight * interval.middle;
#pragma unroll
    for (int k = 0; k < COLOURS; ++k) sum[k] += here.weight * here.sample.colour[k];
  }
  opacity = sum_of_lanes(opacity);
#pragma unroll
  for (int k = 0; k < COLOURS; ++k) sum[k] = sum_of_lanes(sum[k]);
  PixelLoss<float> loss = pixel_loss(pixel, sum, opacity, T, share, problem.entropy_weight);

  for (int k = start + lane; k < span.count; k += LANES) {
    rows[k] = make_float4(0, 0, 0, 0);
    if (EXTENDED && weights) weights[span.first + k] = 0;
  }
  const float mean = distorts ? mean_middle(sum_of_lanes(moment), opacity) : 0.f;
  float V = 0, weight_behind = 0, moment_behind = 0, distortion = 0;  // the first three: behind the block
  for (start -= LANES; start >= 0;) {
    float g = 0, a = 1, b = 0;
    if (here.counts) g = weight_gradient(loss, here.sample.colour);
    if (distorts) {
      const float weight = here.counts ? here.weight : 0.f, middle = here.counts ? interval.middle - mean : 0.f;
      const float weight_from = weight_behind + sum_from(weight, lane), moment_from = moment_behind + sum_from(weight * middle, lane);
      const float at_weight = distortion_gradient(middle, interval.length, weight, opacity, weight_from, moment_from);
      if (here.counts) distortion += weight * at_weight / 2, g += problem.distortion_weight * share * at_weight;
      weight_behind = __shfl_sync(ALL, weight_from, 0), moment_behind = __shfl_sync(ALL, moment_from, 0);
    }
    if (here.counts) a = here.sample.through, b = here.sample.alpha * g;
    chain_from(a, b, lane);  // V before this lane's sample = a * V behind the block + b
    const float before = a * V + b, next = __shfl_down_sync(ALL, before, 1);
    float gradient[RAW] = {};
    if (here.counts) raw_gradient(loss, here.sample, here.weight, here.behind, g, lane == LANES - 1 ? V : next, gradient);
    if (EXTENDED && problem.fades() && here.counts) {
      const float factor = fade(problem, span.first + start + lane);
#pragma unroll
      for (int k = 0; k < RAW; ++k) gradient[k] *= factor;
    }
    float T_start = 1;  // before the block that is next on the way back
    if (start > LANES && lane == 0) T_start = rows[start - LANES].x;
    if (here.inside) rows[start + lane] = make_float4(gradient[0], gradient[1], gradient[2], gradient[3]);
    if (EXTENDED && weights && here.inside) weights[span.first + start + lane] = here.counts ? here.weight : 0.f;
    V = __shfl_sync(ALL, before, 0);
    start -= LANES;
    if (start < 0) break;
    T = __shfl_sync(ALL, T_start, 0);
    here = lane_of(problem, span, start, T, stopped);
    if (EXTENDED) interval = read_interval(problem, span.first + start + lane, distorts && here.counts);
  }
  if (distorts) loss.loss += problem.distortion_weight * share * sum_of_lanes(distortion);
  return loss;
}

// numbers must be zero.
template <bool EXTENDED, class Raw>
__global__ void __launch_bounds__(THREADS, BLOCKS_A_MULTIPROCESSOR<EXTENDED>)
    composite_loss_kernel(const __grid_constant__ LossProblem<Raw, float> problem, float4* delta, float* weights, float* numbers) {
  __shared__ float sums[2][WARPS];
  const int64_t threads = int64_t(gridDim.x) * THREADS, used = problem.used(), kept = problem.kept();
  const float share = problem.share();
  for (int64_t row = used + thread_row(); row < problem.samples; row += threads) {
    delta[row] = make_float4(0, 0, 0, 0);
    if (EXTENDED && weights) weights[row] = 0;
  }
  float loss = 0, squared_error = 0;
  Span next{};
  int64_t ray = thread_row() / LANES;
  if (ray < kept) next = span_of(problem.rows, ray, used);
  for (; ray < kept; ray += threads / LANES) {
    const Span span = next;
    if (ray + threads / LANES < kept) next = span_of(problem.rows, ray + threads / LANES, used);  // arrives while this ray is worked on
    const PixelLoss<float> pixel = warp_ray<EXTENDED>(problem, ray, span, share, delta, weights);
    loss += pixel.loss, squared_error += pixel.squared_error;
  }
  const int warp = threadIdx.x / LANES;
  if (threadIdx.x % LANES == 0) sums[0][warp] = loss, sums[1][warp] = squared_error;
  __syncthreads();
  if (threadIdx.x < 2 && blockIdx.x * int64_t(WARPS) < kept) {
    float sum = 0;
    for (int k = 0; k < WARPS; ++k) sum += sums[threadIdx.x][k];
    atomicAdd(numbers + threadIdx.x, sum);
  }
}

template <bool EXTENDED, class Raw>
cudaError_t launch_form(const LossProblem<Raw, float>& problem, float* delta, float* weights, float* numbers, cudaStream_t stream) {
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaMemsetAsync(numbers, 0, 2 * sizeof(float), stream);
  if (error != cudaSuccess) return error;
  const int64_t most = int64_t(multiprocessors) * BLOCKS_A_MULTIPROCESSOR<EXTENDED> * THREADS;
  const int64_t wanted = problem.rays * LANES > problem.samples ? problem.rays * LANES : problem.samples;
  return launch(composite_loss_kernel<EXTENDED, Raw>, wanted < most ? wanted : most, stream, problem, reinterpret_cast<float4*>(delta),
                weights, numbers);
}

}  // namespace

template <class Raw>
cudaError_t launch_composite_loss(const LossProblem<Raw, float>& problem, float* delta, float* weights, float* numbers,
                                  cudaStream_t stream) {
  const bool extended = problem.distorts() || problem.fades() || weights;
  const auto form = extended ? launch_form<true, Raw> : launch_form<false, Raw>;
  return form(problem, delta, weights, numbers, stream);
}

template cudaError_t launch_composite_loss(const LossProblem<float, float>&, float*, float*, float*, cudaStream_t);
template cudaError_t launch_composite_loss(const LossProblem<__half, float>&, float*, float*, float*, cudaStream_t);

}  // namespace raymarching
