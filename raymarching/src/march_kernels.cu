// The CUDA form of the marches.
//
// Training looks at every step once and in one launch. A warp takes a ray (walker.cuh). Groups with samples are remembered as (start,
// mask). When a block has counted its rays it learns from the blocks before it where its rows begin (decoupled look-back: Merrill and
// Garland 2016), so samples lie in ray order and results repeat bit for bit, and lays out the remembered groups again to write them.
// Estimate: 30,000 rays x 25 groups x 65 instructions = 49 M warp instructions, 0.05 ms at an H100's peak issue rate and some 0.08 in
// practice; 2^18 rows x 36 bytes written = 9.4 MB, under 0.01 ms; the bits, 256 KiB a cascade, stay in L2.
#include "lanes.cuh"
#include "launch.cuh"
#include "raymarching_cuda.h"
#include "walker.cuh"

#define KERNEL __global__ void __launch_bounds__(THREADS)

namespace raymarching {
namespace {

constexpr int WARPS = THREADS / GROUP;
constexpr int REMEMBERED = 32;  // groups with samples, a ray; beyond, a ray is walked again from there

static_assert(RAYS_A_BLOCK <= GROUP, "a lane a ray of the block");

// What the count leaves for the write, for each ray of the block.
struct Found {
  float start[REMEMBERED], rest;  // of the remembered groups; of the first one not remembered
  uint32_t mask[REMEMBERED];
  int groups, samples;
};

// How far the blocks' counts are known, a word each that is written whole: in the upper two bits NOTHING, OWN (of the block alone) or SUM
// (of it and all before), below them the count. state [1 + blocks], zeroed: first the number of blocks that have begun.
constexpr unsigned long long NOTHING = 0, OWN = 1, SUM = 2;
constexpr int FLAG_SHIFT = 62;

// Run by one whole warp of the block: publishes the block's count and returns that of all blocks before it. Blocks are numbered as they
// begin, so those waited for are running or done.
__device__ __forceinline__ long long look_back(volatile unsigned long long* state, int64_t block, long long own, int lane) {
  volatile unsigned long long* words = state + 1;
  if (lane == 0) words[block] = (block ? OWN : SUM) << FLAG_SHIFT | static_cast<unsigned long long>(own);
  long long before = 0;
  for (int64_t nearest = block - 1; nearest >= 0; nearest -= GROUP) {
    unsigned long long word = SUM << FLAG_SHIFT;  // ahead of the first block
    do {
      if (nearest >= lane) word = words[nearest - lane];
    } while (__any_sync(ALL, word >> FLAG_SHIFT == NOTHING));
    const uint32_t sums = __ballot_sync(ALL, word >> FLAG_SHIFT == SUM);
    const bool counts = sums == 0 || lane < __ffs(sums);
    before += sum_of_lanes(counts ? static_cast<long long>(word & ((1ull << FLAG_SHIFT) - 1)) : 0);
    if (sums) break;
  }
  if (lane == 0 && block) words[block] = SUM << FLAG_SHIFT | static_cast<unsigned long long>(before + own);
  return before;
}

// At least ten blocks a multiprocessor: 48 registers, which suffice.
__global__ void __launch_bounds__(THREADS, 10)
    march_train_kernel(const __grid_constant__ March m, Rays rays, const int32_t* num_rays, const uint8_t* __restrict__ bitfield, int limit,
                       int64_t capacity, unsigned long long* state, SampleRows samples, int32_t* rows, int32_t* counts) {
  __shared__ Found found[RAYS_A_BLOCK];
  __shared__ uint32_t spread[MAX_GRID_SIZE];
  __shared__ int64_t first[RAYS_A_BLOCK];
  __shared__ int32_t kept[RAYS_A_BLOCK];
  __shared__ unsigned long long ticket;
  if (threadIdx.x == 0) ticket = atomicAdd(state, 1ull);
  __syncthreads();

  const int lane = threadIdx.x % GROUP;
  const int64_t block = static_cast<int64_t>(ticket), first_ray = block * RAYS_A_BLOCK;
  const int64_t asked = min(static_cast<int64_t>(*num_rays), rays.count);
  if (first_ray >= asked) {  // nobody waits for a block without rays
    const int64_t ray = first_ray + threadIdx.x;
    if (threadIdx.x < RAYS_A_BLOCK && ray < rays.count) rows[2 * ray] = 0, rows[2 * ray + 1] = 0;
    return;
  }
  for (int i = threadIdx.x; i < m.grid_size; i += THREADS) spread[i] = spread_bits(i);
  __syncthreads();
  Walker walker{m, bitfield, spread, {}, {}, 0, lane, m.growth[lane]};
  const auto take_ray = [&](int64_t ray) {
    for (int i = 0; i < 3; ++i) walker.origin[i] = rays.origins[3 * ray + i], walker.direction[i] = rays.directions[3 * ray + i];
    walker.far = least(rays.far[ray], FLT_MAX);
  };

  for (int slot = threadIdx.x / GROUP; slot < RAYS_A_BLOCK; slot += WARPS) {
    const int64_t ray = first_ray + slot;
    Found& here = found[slot];
    int groups = 0, number = 0;
    if (ray < asked) {
      take_ray(ray);
      float t = march_start(m, rays.near[ray], rays.noise[ray]), rest = FLT_MAX;
      const float end = finite_ray(walker.origin, walker.direction) ? walker.far : t;
      while (t < end && number < limit) {
        const float start = t;
        const uint32_t mask = walker.look(walker.lay_group(t));
        if (mask == 0) continue;
        if (groups < REMEMBERED) {
          if (lane == 0) here.start[groups] = start, here.mask[groups] = mask;
        } else if (groups == REMEMBERED) {
          rest = start;
        }
        ++groups, number += __popc(mask);
      }
      if (lane == 0) here.rest = rest;
    }
    if (lane == 0) here.groups = min(groups, REMEMBERED), here.samples = min(number, limit);
  }
  __syncthreads();

  if (threadIdx.x < GROUP) {
    const int64_t ray = first_ray + lane;
    const long long own = lane < RAYS_A_BLOCK ? found[lane].samples : 0;
    long long end = sum_up_to(own, lane);
    end += look_back(state, block, __shfl_sync(ALL, end, GROUP - 1), lane);
    if (lane < RAYS_A_BLOCK) {
      bool whole = false;
      if (ray < rays.count) whole = place_ray(end - own, end, ray, asked, capacity, rows + 2 * ray, counts);
      first[lane] = end - own, kept[lane] = whole ? found[lane].samples : 0;
    }
  }
  __syncthreads();

  for (int slot = threadIdx.x / GROUP; slot < RAYS_A_BLOCK; slot += WARPS) {
    const Found& here = found[slot];
    const int count = kept[slot];
    if (count == 0) continue;
    const int64_t ray = first_ray + slot;
    take_ray(ray);
    int emitted = 0;
    for (int group = 0; group < here.groups; ++group) {
      float t = here.start[group];
      emitted = walker.write(walker.lay_group(t), here.mask[group], emitted, count, first[slot], static_cast<int32_t>(ray), samples);
    }
    for (float t = here.rest; emitted < count;) {
      const float step = walker.lay_group(t);
      emitted = walker.write(step, walker.look(step), emitted, count, first[slot], static_cast<int32_t>(ray), samples);
    }
  }
}

KERNEL pad_samples_kernel(const int32_t* counts, int64_t capacity, SampleRows samples) {
  const int64_t i = thread_row();
  if (i < capacity && i >= counts[0]) samples.pad(i);
}

KERNEL march_alive_kernel(const __grid_constant__ March m, const int32_t* alive, int64_t alive_rays, Rays rays,
                          const uint8_t* __restrict__ bitfield, int steps, SampleRows samples, float* t_next) {
  const int64_t a = thread_row();
  if (a >= alive_rays) return;
  t_next[a] =
      march_alive(m, alive[a], rays.count, rays.t_now, rays.origins, rays.directions, rays.far, bitfield, a * steps, steps, samples);
}

}  // namespace

cudaError_t launch_march_train(const March& march, const Rays& rays, const int32_t* num_rays, const uint8_t* bitfield, int max_steps,
                               int64_t capacity, int64_t* state, const SampleRows& samples, int32_t* rows, int32_t* counts,
                               cudaStream_t stream) {
  const int64_t blocks = (rays.count + RAYS_A_BLOCK - 1) / RAYS_A_BLOCK;
  const cudaError_t error = launch(march_train_kernel, blocks * THREADS, stream, march, rays, num_rays, bitfield, max_steps, capacity,
                                   reinterpret_cast<unsigned long long*>(state), samples, rows, counts);
  return error != cudaSuccess ? error : launch(pad_samples_kernel, capacity, stream, counts, capacity, samples);
}

cudaError_t launch_march_alive(const March& march, const int32_t* alive, int64_t alive_rays, const Rays& rays, const uint8_t* bitfield,
                               int steps, const SampleRows& samples, float* t_next, cudaStream_t stream) {
  return launch(march_alive_kernel, alive_rays, stream, march, alive, alive_rays, rays, bitfield, steps, samples, t_next);
}

}  // namespace raymarching
