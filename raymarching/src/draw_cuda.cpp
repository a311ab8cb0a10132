// The CUDA form of drawing training rays: tensors to pointers on the tensors' device and its current stream.
#include "draw_cuda.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

namespace raymarching {
namespace {

using at::Tensor;
using c10::cuda::CUDAGuard;
using c10::cuda::getCurrentCUDAStream;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> draw_rays(const Tensor& random_, const Tensor& count, const Tensor& pixels_,
                                                                     const Tensor& offsets_, const Tensor& sizes_, const Tensor& images_,
                                                                     bool mixed, const Tensor& poses_, const Tensor& intrinsics_,
                                                                     const Tensor& distortion_, const Tensor& lens_, const Tensor& near_,
                                                                     const Tensor& far_, const Tensor& aabb_) {
  const CUDAGuard guard(random_.device());
  const Tensor random = random_.contiguous(), pixels = pixels_.contiguous(), offsets = offsets_.contiguous(), sizes = sizes_.contiguous();
  const Tensor images = images_.contiguous(), poses = poses_.contiguous(), intrinsics = intrinsics_.contiguous();
  const Tensor distortion = distortion_.contiguous(), lens = lens_.contiguous(), near = near_.contiguous(), far = far_.contiguous();
  const Tensor aabb = aabb_.contiguous();
  const int64_t N = random.size(0);
  const auto options = random.options();
  Tensor origins = at::empty({N, 3}, options), directions = at::empty({N, 3}, options), image = at::empty({N}, images.options());
  Tensor first = at::empty({N}, options), last = at::empty({N}, options), target = at::empty({N, pixels.size(1)}, options);
  const Photos photos{pixels.const_data_ptr<uint8_t>(), pixels.size(0), static_cast<int>(pixels.size(1)),
                      offsets.const_data_ptr<int64_t>(), sizes.const_data_ptr<int64_t>(), images.const_data_ptr<int64_t>(), images.size(0)};
  const Views views{poses.const_data_ptr<float>(), intrinsics.const_data_ptr<float>(), distortion.const_data_ptr<float>(),
                    lens.const_data_ptr<int32_t>(), near.const_data_ptr<float>(), far.const_data_ptr<float>(), poses.size(0),
                    aabb.const_data_ptr<float>()};
  const DrawnRays drawn{origins.mutable_data_ptr<float>(), directions.mutable_data_ptr<float>(), first.mutable_data_ptr<float>(),
                        last.mutable_data_ptr<float>(), image.mutable_data_ptr<int64_t>(), target.mutable_data_ptr<float>()};
  C10_CUDA_CHECK(launch_draw_rays(random.const_data_ptr<float>(), random.size(1), mixed, count.const_data_ptr<int32_t>(), N, photos, views,
                                  drawn, getCurrentCUDAStream()));
  return {origins, directions, first, last, image, target};
}

void adapt_ray_count(const Tensor& value, const Tensor& counts_, int64_t capacity, int64_t samples, double fill, double growth) {
  const CUDAGuard guard(value.device());
  const Tensor counts = counts_.contiguous();
  C10_CUDA_CHECK(launch_adapt_ray_count(make_aim(capacity, samples, fill, growth), counts.const_data_ptr<int32_t>(),
                                        value.mutable_data_ptr<int32_t>(), getCurrentCUDAStream()));
}

}  // namespace

TORCH_LIBRARY_IMPL(raymarching, CUDA, m) {
  m.impl("draw_rays", draw_rays);
  m.impl("adapt_ray_count", adapt_ray_count);
}

}  // namespace raymarching
