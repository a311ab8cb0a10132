// Drawing training rays: the operators' schemas and their CPU form. Every loop writes only its own rows: results repeat bit for bit.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "draw_math.h"

TORCH_LIBRARY_FRAGMENT(raymarching, m) {
  m.def(
      "draw_rays(Tensor random, Tensor count, Tensor pixels, Tensor offsets, Tensor sizes, Tensor images, bool mixed, Tensor poses, "
      "Tensor intrinsics, Tensor distortion, Tensor lens, Tensor near, Tensor far, Tensor aabb) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("adapt_ray_count(Tensor(a!) value, Tensor counts, int capacity, int samples, float fill, float growth) -> ()");
}

namespace raymarching {
namespace {

using at::Tensor;

constexpr int64_t ROWS_A_TASK = 1024;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> draw_rays(const Tensor& random_, const Tensor& count, const Tensor& pixels_,
                                                                     const Tensor& offsets_, const Tensor& sizes_, const Tensor& images_,
                                                                     bool mixed, const Tensor& poses_, const Tensor& intrinsics_,
                                                                     const Tensor& distortion_, const Tensor& lens_, const Tensor& near_,
                                                                     const Tensor& far_, const Tensor& aabb_) {
  const Tensor random = random_.contiguous(), pixels = pixels_.contiguous(), offsets = offsets_.contiguous(), sizes = sizes_.contiguous();
  const Tensor images = images_.contiguous(), poses = poses_.contiguous(), intrinsics = intrinsics_.contiguous();
  const Tensor distortion = distortion_.contiguous(), lens = lens_.contiguous(), near = near_.contiguous(), far = far_.contiguous();
  const Tensor aabb = aabb_.contiguous();
  const int64_t N = random.size(0), columns = random.size(1);
  const auto options = random.options();
  Tensor origins = at::zeros({N, 3}, options), directions = at::zeros({N, 3}, options), image = at::zeros({N}, images.options());
  Tensor first = at::full({N}, FLT_MAX, options), last = at::full({N}, FLT_MAX, options), target = at::zeros({N, pixels.size(1)}, options);
  const Photos photos{pixels.const_data_ptr<uint8_t>(), pixels.size(0), static_cast<int>(pixels.size(1)),
                      offsets.const_data_ptr<int64_t>(), sizes.const_data_ptr<int64_t>(), images.const_data_ptr<int64_t>(), images.size(0)};
  const Views views{poses.const_data_ptr<float>(), intrinsics.const_data_ptr<float>(), distortion.const_data_ptr<float>(),
                    lens.const_data_ptr<int32_t>(), near.const_data_ptr<float>(), far.const_data_ptr<float>(), poses.size(0),
                    aabb.const_data_ptr<float>()};
  const DrawnRays drawn{origins.mutable_data_ptr<float>(), directions.mutable_data_ptr<float>(), first.mutable_data_ptr<float>(),
                        last.mutable_data_ptr<float>(), image.mutable_data_ptr<int64_t>(), target.mutable_data_ptr<float>()};
  const auto chance = random.const_data_ptr<float>();
  const int64_t used = std::clamp<int64_t>(*count.const_data_ptr<int32_t>(), 0, N);
  at::parallel_for(0, used, ROWS_A_TASK, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) draw_ray(photos, views, chance[mixed ? columns * i : 0], chance + columns * i, i, drawn);
  });
  return {origins, directions, first, last, image, target};
}

void adapt_ray_count(const Tensor& value, const Tensor& counts_, int64_t capacity, int64_t samples, double fill, double growth) {
  const Tensor counts = counts_.contiguous();
  auto rays = value.mutable_data_ptr<int32_t>();
  *rays = next_ray_count(make_aim(capacity, samples, fill, growth), *rays, counts.const_data_ptr<int32_t>()[2]);
}

}  // namespace

TORCH_LIBRARY_IMPL(raymarching, CPU, m) {
  m.impl("draw_rays", draw_rays);
  m.impl("adapt_ray_count", adapt_ray_count);
}

}  // namespace raymarching
