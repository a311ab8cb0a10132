// The CUDA form of drawing training rays, around the functions that the CPU runs.
#include "draw_cuda.h"
#include "launch.cuh"

#define KERNEL __global__ void __launch_bounds__(THREADS)

namespace raymarching {
namespace {

// The threads of a block write rows [begin, end) of a buffer `width` wide, neighbours next to each other.
template <class Value>
__device__ void fill_rows(Value* buffer, int64_t width, int64_t begin, int64_t end, Value value) {
  for (int64_t k = width * begin + threadIdx.x; k < width * end; k += THREADS) buffer[k] = value;
}

// A thread a ray. A ray in use reads 12 bytes of random numbers, its view (about 150 bytes, shared by many) and a pixel of 3 or 4 bytes
// somewhere in all photos, a 32-byte sector of device memory. Every row is written: 52 or 56 bytes. Rows that are not in use are filled by
// whole blocks, in full sectors, and read nothing but the count. 2^18 rows with a tenth in use write 14 MB: 5 us at 3 TB/s; the chain of
// four dependent reads and the lens takes 3 us of them.
KERNEL draw_rays_kernel(int64_t rows, const float* random, int64_t columns, bool mixed, const int32_t* count, Photos photos, Views views,
                        DrawnRays drawn) {
  const int64_t begin = int64_t(blockIdx.x) * THREADS, i = begin + threadIdx.x;
  const int64_t end = begin + THREADS < rows ? begin + THREADS : rows;
  const int64_t asked = *count, used = asked < begin ? begin : asked < end ? asked : end;  // where the block's rows in use end
  if (i < used) draw_ray(photos, views, random[mixed ? columns * i : 0], random + columns * i, i, drawn);
  fill_rows(drawn.origins, 3, used, end, 0.f);
  fill_rows(drawn.directions, 3, used, end, 0.f);
  fill_rows(drawn.near, 1, used, end, FLT_MAX);
  fill_rows(drawn.far, 1, used, end, FLT_MAX);
  fill_rows(drawn.image, 1, used, end, int64_t{0});
  fill_rows(drawn.target, photos.channels, used, end, 0.f);
}

// One thread: reads 8 bytes, writes 4. 2 us, all of it latency.
KERNEL adapt_ray_count_kernel(RayAim aim, const int32_t* counts, int32_t* value) {
  if (thread_row() == 0) *value = next_ray_count(aim, *value, counts[2]);
}

}  // namespace

cudaError_t launch_draw_rays(const float* random, int64_t columns, bool mixed, const int32_t* count, int64_t rays, const Photos& photos,
                             const Views& views, const DrawnRays& drawn, cudaStream_t stream) {
  return launch(draw_rays_kernel, rays, stream, rays, random, columns, mixed, count, photos, views, drawn);
}

cudaError_t launch_adapt_ray_count(const RayAim& aim, const int32_t* counts, int32_t* value, cudaStream_t stream) {
  return launch(adapt_ray_count_kernel, 1, stream, aim, counts, value);
}

}  // namespace raymarching
