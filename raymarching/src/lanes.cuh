// What the 32 lanes of a warp work out together. All lanes call these at once.
#pragma once

namespace raymarching {

constexpr int LANES = 32;
constexpr unsigned ALL = 0xffffffffu;

// The sum of x over the lanes, in all of them.
template <class Number>
__device__ __forceinline__ Number sum_of_lanes(Number x) {
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step);
  return x;
}

// The sum of x over the lanes from the first up to this one.
template <class Number>
__device__ __forceinline__ Number sum_up_to(Number x, int lane) {
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) {
    const Number other = __shfl_up_sync(ALL, x, step);
    if (lane >= step) x += other;
  }
  return x;
}

// The sum of x over the lanes from this one to the last.
__device__ __forceinline__ float sum_from(float x, int lane) {
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) {
    const float other = __shfl_down_sync(ALL, x, step);
    if (lane + step < LANES) x += other;
  }
  return x;
}

// The product of x over the lanes from the first up to this one.
__device__ __forceinline__ float product_up_to(float x, int lane) {
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) {
    const float other = __shfl_up_sync(ALL, x, step);
    if (lane >= step) x *= other;
  }
  return x;
}

// Each lane has a map v -> a v + b. After it (a, b) is the map of this lane and all later ones, the last applied first.
__device__ __forceinline__ void chain_from(float& a, float& b, int lane) {
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) {
    const float later_a = __shfl_down_sync(ALL, a, step), later_b = __shfl_down_sync(ALL, b, step);
    const float chained_a = a * later_a, chained_b = b + a * later_b;
    if (lane + step < LANES) a = chained_a, b = chained_b;
  }
}

}  // namespace raymarching
