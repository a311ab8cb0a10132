// The CUDA form of compositing. Training takes one warp a ray: its lanes read 32 neighbouring samples at once, where one thread a ray would
// stride through memory, and rays of unequal length do not hold each other up. Transmittance is a running product over the lanes; V of the
// gradient (composite_math.h) a chain of affine maps v -> a v + b, composed from the back. Rendering takes one thread a ray, for it
// composites few samples.
#include "lanes.cuh"
#include "launch.cuh"
#include "raymarching_cuda.h"

namespace raymarching {
namespace {

// What a lane knows of its sample in a block of 32 along the ray.
struct Lane {
  float tau, before, behind;  // optical depth; transmittance before and behind the sample
  bool counts;                // inside the ray and not behind the sample at which the ray stopped
};

// Loads the block's sample of this lane; T is the transmittance before the block and becomes that behind it. `stopped` is set, in all
// lanes, once T has fallen below the threshold.
__device__ __forceinline__ Lane next_block(const Medium<float>& medium, int64_t sample, bool inside, float T_thresh, float& T,
                                           bool& stopped) {
  const int lane = threadIdx.x % LANES;
  Lane here;
  here.tau = inside ? optical_depth(medium, sample) : 0.f;
  const float product = product_up_to(std::exp(-here.tau), lane);
  const float previous = __shfl_up_sync(ALL, product, 1);
  here.before = lane ? T * previous : T;
  here.behind = T * product;
  const unsigned below = __ballot_sync(ALL, inside && here.behind < T_thresh);
  here.counts = inside && (below == 0 || lane < __ffs(below));
  stopped = below != 0;
  T = __shfl_sync(ALL, here.behind, LANES - 1);
  return here;
}

// ROOM: registers for the channels, at least K.
template <int ROOM>
__global__ void __launch_bounds__(THREADS)
    composite_kernel(Medium<float> medium, const int32_t* rows, int64_t rays, int64_t samples, float T_thresh, float* composited,
                     float* opacity, float* depth, float* weights) {
  const int64_t ray = thread_row() / LANES;
  if (ray >= rays) return;
  const int lane = threadIdx.x % LANES;
  const Span span = span_of(rows, ray, samples);
  float T = 1, whole = 0, far = 0, sum[ROOM] = {};
  bool stopped = false;
  for (int start = 0; start < span.count && !stopped; start += LANES) {
    const int64_t sample = span.first + start + lane;
    const Lane here = next_block(medium, sample, start + lane < span.count, T_thresh, T, stopped);
    if (!here.counts) continue;
    const float weight = here.before * -std::expm1(-here.tau);
    weights[sample] = weight;
    whole += weight;
    far += weight * medium.t[sample];
#pragma unroll
    for (int k = 0; k < ROOM; ++k)
      if (k < medium.channels) sum[k] += weight * medium.features[sample * medium.channels + k];
  }
  whole = sum_of_lanes(whole), far = sum_of_lanes(far);
  if (lane == 0) opacity[ray] = whole, depth[ray] = far;
#pragma unroll
  for (int k = 0; k < ROOM; ++k) {
    if (k >= medium.channels) break;
    const float total = sum_of_lanes(sum[k]);
    if (lane == 0) composited[ray * medium.channels + k] = total;
  }
}

// The first walk leaves the transmittance behind each sample in grad_density and finds where the ray stops; the second, from the back,
// needs V.
__global__ void __launch_bounds__(THREADS)
    composite_backward_kernel(Medium<float> medium, Cotangents<float> grad, const int32_t* rows, int64_t rays, int64_t samples,
                              float T_thresh, float* grad_density, float* grad_features) {
  const int64_t ray = thread_row() / LANES;
  if (ray >= rays) return;
  const int lane = threadIdx.x % LANES;
  const Span span = span_of(rows, ray, samples);
  float T = 1;
  bool stopped = false, counted = false;
  int start = 0;
  for (; start < span.count && !stopped; start += LANES) {
    const int64_t sample = span.first + start + lane;
    const Lane here = next_block(medium, sample, start + lane < span.count, T_thresh, T, stopped);
    counted = here.counts;  // after the loop: whether this lane's sample of the last block counts; in earlier blocks all do
    if (!here.counts) continue;
    grad_density[sample] = here.behind;
    write_feature_gradient(grad, medium.channels, ray, sample, here.before * -std::expm1(-here.tau), grad_features);
  }
  float V = 0;  // behind the block
  for (start -= LANES; start >= 0; start -= LANES, counted = true) {
    const int64_t sample = span.first + start + lane;
    float g = 0, a = 1, b = 0;
    if (counted) {
      const float tau = optical_depth(medium, sample);
      g = weight_gradient(medium, grad, ray, sample);
      a = std::exp(-tau), b = -std::expm1(-tau) * g;
    }
    chain_from(a, b, lane);  // V before this lane's sample = a * V behind the block + b
    const float before = a * V + b, next = __shfl_down_sync(ALL, before, 1);
    if (counted) grad_density[sample] *= length_of(medium, sample) * (g - (lane == LANES - 1 ? V : next));
    V = __shfl_sync(ALL, before, 0);
  }
}

__global__ void __launch_bounds__(THREADS)
    composite_alive_kernel(const __grid_constant__ Medium<float> medium, int64_t alive_rays, int64_t steps, int64_t rays,
                           const float* t_next, float T_thresh, int32_t* alive, float* t_now, const __grid_constant__ Picture picture) {
  const int64_t a = thread_row();
  if (a < alive_rays) composite_alive(medium, a, steps, rays, t_next, T_thresh, alive, t_now, picture);
}

}  // namespace

cudaError_t launch_composite(const Medium<float>& medium, const int32_t* rows, int64_t rays, int64_t samples, float T_thresh,
                             float* composited, float* opacity, float* depth, float* weights, cudaStream_t stream) {
  const auto kernel = medium.channels <= 4 ? composite_kernel<4> : composite_kernel<MAX_CHANNELS>;
  return launch(kernel, rays * LANES, stream, medium, rows, rays, samples, T_thresh, composited, opacity, depth, weights);
}

cudaError_t launch_composite_backward(const Medium<float>& medium, const Cotangents<float>& grad, const int32_t* rows, int64_t rays,
                                      int64_t samples, float T_thresh, float* grad_density, float* grad_features, cudaStream_t stream) {
  return launch(composite_backward_kernel, rays * LANES, stream, medium, grad, rows, rays, samples, T_thresh, grad_density, grad_features);
}

cudaError_t launch_composite_alive(const Medium<float>& medium, int64_t alive_rays, int64_t steps, int64_t rays, const float* t_next,
                                   float T_thresh, int32_t* alive, float* t_now, const Picture& picture, cudaStream_t stream) {
  return launch(composite_alive_kernel, alive_rays, stream, medium, alive_rays, steps, rays, t_next, T_thresh, alive, t_now, picture);
}

}  // namespace raymarching
