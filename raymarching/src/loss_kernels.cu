// The CUDA form of the loss, one launch: a warp a ray, as in composite_kernels.cu, but only over the rays that were kept, whose number is
// read here; warps stride over them, for the rows of `rays` are often many times as many.
//
// A sample costs 8 (half) or 16 bytes of raw and 4 of dt, read once for a ray's last 32 samples and, from a cache, twice for those before;
// 16 bytes of delta are written. At 2^20 samples in half that is 29 MB, 0.01 ms at 3 TB/s; with the arithmetic (some 10 exponentials a
// sample) about 0.025 ms is expected.
//
// Nothing is kept between the two walks along a ray but the transmittance before each 32 samples, in the first of their rows of delta.
#include "launch.cuh"
#include "loss_cuda.h"

namespace raymarching {
namespace {

constexpr int LANES = 32, WARPS = THREADS / LANES;
constexpr int BLOCKS_A_MULTIPROCESSOR = 9;  // all resident at once on every GPU from sm_80 on, with 56 registers a thread
constexpr unsigned ALL = 0xffffffffu;

__device__ __forceinline__ float sum_of_lanes(float x) {
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step);
  return x;
}

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
  float product = here.sample.through;
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) {
    const float other = __shfl_up_sync(ALL, product, step);
    if (lane >= step) product *= other;
  }
  const float previous = __shfl_up_sync(ALL, product, 1);
  here.weight = (lane ? T * previous : T) * here.sample.alpha;
  here.behind = T * product;
  const unsigned below = __ballot_sync(ALL, here.inside && here.behind < problem.T_thresh);
  here.counts = here.inside && (below == 0 || lane < __ffs(below));
  stopped = below != 0;
  T = __shfl_sync(ALL, here.behind, below ? __ffs(below) - 1 : LANES - 1);
  return here;
}

// One ray, whose samples are `span`, by one warp. Returns the ray's part of the loss, in all lanes.
template <class Raw>
__device__ __forceinline__ PixelLoss<float> warp_ray(const LossProblem<Raw, float>& problem, int64_t ray, const Span& span, float share,
                                                     float4* delta) {
  const int lane = threadIdx.x % LANES;
  const Pixel<float> pixel = pixel_of(problem, ray);
  float4* const rows = delta + span.first;
  float T = 1, opacity = 0, sum[COLOURS] = {};
  bool stopped = false;
  Lane here;
  int start = 0;
  for (; start < span.count && !stopped; start += LANES) {
    if (start > 0 && lane == 0) rows[start].x = T;
    here = lane_of(problem, span, start, T, stopped);
    if (!here.counts) continue;
    opacity += here.weight;
#pragma unroll
    for (int k = 0; k < COLOURS; ++k) sum[k] += here.weight * here.sample.colour[k];
  }
  opacity = sum_of_lanes(opacity);
#pragma unroll
  for (int k = 0; k < COLOURS; ++k) sum[k] = sum_of_lanes(sum[k]);
  const PixelLoss<float> loss = pixel_loss(pixel, sum, opacity, T, share, problem.entropy_weight);

  for (int k = start + lane; k < span.count; k += LANES) rows[k] = make_float4(0, 0, 0, 0);
  float V = 0;  // behind the block
  for (start -= LANES; start >= 0;) {
    float g = 0, a = 1, b = 0;
    if (here.counts) g = weight_gradient(loss, here.sample.colour), a = here.sample.through, b = here.sample.alpha * g;
#pragma unroll
    for (int step = 1; step < LANES; step *= 2) {  // after it: V before this lane's sample = a * V behind the block + b
      const float later_a = __shfl_down_sync(ALL, a, step), later_b = __shfl_down_sync(ALL, b, step);
      if (lane + step < LANES) b += a * later_b, a *= later_a;
    }
    const float before = a * V + b, next = __shfl_down_sync(ALL, before, 1);
    float gradient[RAW] = {};
    if (here.counts) raw_gradient(loss, here.sample, here.weight, here.behind, g, lane == LANES - 1 ? V : next, gradient);
    float T_start = 1;  // before the block that is next on the way back
    if (start > LANES && lane == 0) T_start = rows[start - LANES].x;
    if (here.inside) rows[start + lane] = make_float4(gradient[0], gradient[1], gradient[2], gradient[3]);
    V = __shfl_sync(ALL, before, 0);
    start -= LANES;
    if (start < 0) break;
    T = __shfl_sync(ALL, T_start, 0);
    here = lane_of(problem, span, start, T, stopped);
  }
  return loss;
}

// numbers must be zero.
template <class Raw>
__global__ void __launch_bounds__(THREADS, BLOCKS_A_MULTIPROCESSOR)
    composite_loss_kernel(const __grid_constant__ LossProblem<Raw, float> problem, float4* delta, float* numbers) {
  __shared__ float sums[2][WARPS];
  const int64_t threads = int64_t(gridDim.x) * THREADS, used = problem.used(), kept = problem.kept();
  const float share = problem.share();
  for (int64_t row = used + thread_row(); row < problem.samples; row += threads) delta[row] = make_float4(0, 0, 0, 0);
  float loss = 0, squared_error = 0;
  Span next{};
  int64_t ray = thread_row() / LANES;
  if (ray < kept) next = span_of(problem.rows, ray, used);
  for (; ray < kept; ray += threads / LANES) {
    const Span span = next;
    if (ray + threads / LANES < kept) next = span_of(problem.rows, ray + threads / LANES, used);  // arrives while this ray is worked on
    const PixelLoss<float> pixel = warp_ray(problem, ray, span, share, delta);
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

}  // namespace

template <class Raw>
cudaError_t launch_composite_loss(const LossProblem<Raw, float>& problem, float* delta, float* numbers, cudaStream_t stream) {
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaMemsetAsync(numbers, 0, 2 * sizeof(float), stream);
  if (error != cudaSuccess) return error;
  const int64_t most = int64_t(multiprocessors) * BLOCKS_A_MULTIPROCESSOR * THREADS;
  const int64_t wanted = problem.rays * LANES > problem.samples ? problem.rays * LANES : problem.samples;
  return launch(composite_loss_kernel<Raw>, wanted < most ? wanted : most, stream, problem, reinterpret_cast<float4*>(delta), numbers);
}

template cudaError_t launch_composite_loss(const LossProblem<float, float>&, float*, float*, cudaStream_t);
template cudaError_t launch_composite_loss(const LossProblem<__half, float>&, float*, float*, cudaStream_t);

}  // namespace raymarching
