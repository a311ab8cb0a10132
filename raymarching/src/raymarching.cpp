// The operators' schemas, and the CPU form of all but compositing (composite.cpp). Every loop writes only its own rows: results repeat bit
// for bit.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "composite_math.h"
#include "march_math.h"

TORCH_LIBRARY(raymarching, m) {
  m.def("generate_rays(Tensor image, Tensor pixels, Tensor poses, Tensor intrinsics, Tensor distortion, Tensor lens) -> (Tensor, Tensor)");
  m.def("near_far_from_aabb(Tensor origins, Tensor directions, Tensor aabb, float min_near) -> (Tensor, Tensor)");
  m.def("morton3D(Tensor coords) -> Tensor");
  m.def("morton3D_invert(Tensor indices) -> Tensor");
  m.def("packbits(Tensor density, Tensor threshold) -> Tensor");
  m.def("contract(Tensor positions) -> Tensor");
  m.def("flatten_rays(Tensor rays, int samples) -> Tensor");
  m.def("sph_from_ray(Tensor origins, Tensor directions, float radius) -> Tensor");
  m.def(
      "march_rays_train(Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor noise, Tensor num_rays, Tensor bitfield, *, "
      "float bound, int cascades, int grid_size, bool contract, float dt_gamma, int max_steps, int capacity) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "march_rays(Tensor alive, Tensor t_now, Tensor origins, Tensor directions, Tensor far, Tensor bitfield, *, int steps, "
      "float bound, int cascades, int grid_size, bool contract, float dt_gamma, int max_steps) -> (Tensor, Tensor, Tensor, Tensor, "
      "Tensor)");
  m.def(
      "composite_rays_train_forward(Tensor density, Tensor features, Tensor t, Tensor dt, Tensor rays, float T_thresh) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "composite_rays_train_backward(Tensor? grad_composited, Tensor? grad_opacity, Tensor? grad_depth, Tensor? grad_weights, "
      "Tensor density, Tensor features, Tensor t, Tensor dt, Tensor rays, float T_thresh) -> (Tensor, Tensor)");
  m.def(
      "composite_rays(Tensor(a!) alive, Tensor(b!) t_now, Tensor t_next, Tensor density, Tensor features, Tensor t, Tensor dt, "
      "Tensor(c!) composited, Tensor(d!) opacity, Tensor(e!) depth, float T_thresh) -> ()");
}

namespace raymarching {
namespace {

using at::Tensor;

constexpr int64_t RAYS_A_TASK = 64;
constexpr int64_t ROWS_A_TASK = 4096;

template <class Body>
void each(int64_t size, int64_t a_task, Body&& body) {
  at::parallel_for(0, size, a_task, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

std::tuple<Tensor, Tensor> generate_rays(const Tensor& image_, const Tensor& pixels_, const Tensor& poses_, const Tensor& intrinsics_,
                                         const Tensor& distortion_, const Tensor& lens_) {
  const Tensor image = image_.contiguous(), pixels = pixels_.contiguous(), poses = poses_.contiguous();
  const Tensor intrinsics = intrinsics_.contiguous(), distortion = distortion_.contiguous(), lens = lens_.contiguous();
  Tensor origins = at::empty({image.size(0), 3}, pixels.options()), directions = at::empty_like(origins);
  const auto index = image.const_data_ptr<int64_t>();
  const auto kind = lens.const_data_ptr<int32_t>();
  const auto pixel = pixels.const_data_ptr<float>(), pose = poses.const_data_ptr<float>();
  const auto focal = intrinsics.const_data_ptr<float>(), k = distortion.const_data_ptr<float>();
  auto origin = origins.mutable_data_ptr<float>(), direction = directions.mutable_data_ptr<float>();
  const int64_t cameras = poses.size(0);
  each(image.size(0), ROWS_A_TASK, [&](int64_t i) {
    const Camera camera = camera_of(index[i], cameras, pose, focal, k, kind);
    pixel_ray(pixel + 2 * i, camera, origin + 3 * i, direction + 3 * i);
  });
  return {origins, directions};
}

std::tuple<Tensor, Tensor> near_far_from_aabb(const Tensor& origins_, const Tensor& directions_, const Tensor& aabb_, double min_near) {
  const Tensor origins = origins_.contiguous(), directions = directions_.contiguous(), aabb = aabb_.contiguous();
  Tensor near = at::empty({origins.size(0)}, origins.options()), far = at::empty_like(near);
  const auto origin = origins.const_data_ptr<float>(), direction = directions.const_data_ptr<float>(), box = aabb.const_data_ptr<float>();
  auto first = near.mutable_data_ptr<float>(), last = far.mutable_data_ptr<float>();
  each(origins.size(0), ROWS_A_TASK,
       [&](int64_t i) { near_far(origin + 3 * i, direction + 3 * i, box, static_cast<float>(min_near), first[i], last[i]); });
  return {near, far};
}

Tensor morton3D(const Tensor& coords_) {
  const Tensor coords = coords_.contiguous();
  Tensor indices = at::empty({coords.size(0)}, coords.options());
  const auto xyz = coords.const_data_ptr<int32_t>();
  auto code = indices.mutable_data_ptr<int32_t>();
  each(coords.size(0), ROWS_A_TASK, [&](int64_t i) { code[i] = static_cast<int32_t>(morton(xyz[3 * i], xyz[3 * i + 1], xyz[3 * i + 2])); });
  return indices;
}

Tensor morton3D_invert(const Tensor& indices_) {
  const Tensor indices = indices_.contiguous();
  Tensor coords = at::empty({indices.size(0), 3}, indices.options());
  const auto code = indices.const_data_ptr<int32_t>();
  auto xyz = coords.mutable_data_ptr<int32_t>();
  each(indices.size(0), ROWS_A_TASK, [&](int64_t i) {
    for (int axis = 0; axis < 3; ++axis) xyz[3 * i + axis] = static_cast<int32_t>(gather_bits(static_cast<uint32_t>(code[i]) >> axis));
  });
  return coords;
}

Tensor packbits(const Tensor& density_, const Tensor& threshold) {
  const Tensor density = density_.contiguous();
  Tensor bitfield = at::empty({density.size(0) / 8}, density.options().dtype(at::kByte));
  const auto value = density.const_data_ptr<float>();
  const float level = *threshold.const_data_ptr<float>();
  auto byte = bitfield.mutable_data_ptr<uint8_t>();
  each(bitfield.size(0), ROWS_A_TASK, [&](int64_t i) { byte[i] = packed_byte(value + 8 * i, level); });
  return bitfield;
}

Tensor contract_positions(const Tensor& positions) {
  Tensor contracted = positions.clone(at::MemoryFormat::Contiguous);
  auto position = contracted.mutable_data_ptr<float>();
  each(contracted.size(0), ROWS_A_TASK, [&](int64_t i) { contract(position + 3 * i); });
  return contracted;
}

Tensor flatten_rays(const Tensor& rays_, int64_t samples) {
  const Tensor rays = rays_.contiguous();
  Tensor ray_index = at::full({samples}, -1, rays.options());
  const auto rows = rays.const_data_ptr<int32_t>();
  auto index = ray_index.mutable_data_ptr<int32_t>();
  each(rays.size(0), ROWS_A_TASK, [&](int64_t ray) {
    const Span span = span_of(rows, ray, samples);
    number_samples(span.first, span.count, 0, 1, static_cast<int32_t>(ray), index);
  });
  return ray_index;
}

Tensor sph_from_ray(const Tensor& origins_, const Tensor& directions_, double radius) {
  const Tensor origins = origins_.contiguous(), directions = directions_.contiguous();
  Tensor coords = at::empty({origins.size(0), 2}, origins.options());
  const auto origin = origins.const_data_ptr<float>(), direction = directions.const_data_ptr<float>();
  auto coord = coords.mutable_data_ptr<float>();
  each(origins.size(0), ROWS_A_TASK,
       [&](int64_t i) { sphere_coordinates(origin + 3 * i, direction + 3 * i, static_cast<float>(radius), coord + 2 * i); });
  return coords;
}

// A sample that is not yet in its row.
struct Sample {
  float position[3], middle, dt;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> march_rays_train(const Tensor& origins_, const Tensor& directions_,
                                                                                    const Tensor& near_, const Tensor& far_,
                                                                                    const Tensor& noise_, const Tensor& num_rays,
                                                                                    const Tensor& bitfield_, double bound, int64_t cascades,
                                                                                    int64_t grid_size, bool contract, double dt_gamma,
                                                                                    int64_t max_steps, int64_t capacity) {
  const March m = make_march(bound, cascades, grid_size, contract, dt_gamma, max_steps);
  const Tensor origins = origins_.contiguous(), directions = directions_.contiguous(), near = near_.contiguous(), far = far_.contiguous();
  const Tensor noise = noise_.contiguous(), bitfield = bitfield_.contiguous();
  const int64_t N = origins.size(0);
  const auto options = origins.options(), integers = options.dtype(at::kInt);
  Tensor positions = at::empty({capacity, 3}, options), sample_directions = at::empty({capacity, 3}, options);
  Tensor t = at::empty({capacity}, options), dt = at::empty({capacity}, options), ray_index = at::empty({capacity}, integers);
  Tensor rays = at::empty({N, 2}, integers), counts = at::zeros({3}, integers);

  const auto origin = origins.const_data_ptr<float>(), direction = directions.const_data_ptr<float>();
  const auto first = near.const_data_ptr<float>(), last = far.const_data_ptr<float>(), jitter = noise.const_data_ptr<float>();
  const auto bits = bitfield.const_data_ptr<uint8_t>();
  const int64_t asked = std::min<int64_t>(*num_rays.const_data_ptr<int32_t>(), N);
  const int limit = static_cast<int>(std::min<int64_t>(max_steps, INT32_MAX));
  auto row = rays.mutable_data_ptr<int32_t>(), count = counts.mutable_data_ptr<int32_t>();
  const SampleRows samples{positions.mutable_data_ptr<float>(), sample_directions.mutable_data_ptr<float>(), t.mutable_data_ptr<float>(),
                           dt.mutable_data_ptr<float>(), ray_index.mutable_data_ptr<int32_t>()};

  // Each ray is walked once: a task keeps its rays' samples until the counts of the rays before say where they go.
  const int64_t tasks = (N + RAYS_A_TASK - 1) / RAYS_A_TASK;
  std::vector<std::vector<Sample>> found(tasks);
  std::vector<int64_t> ends(N);
  each(tasks, 1, [&](int64_t task) {
    for (int64_t i = task * RAYS_A_TASK; i < std::min((task + 1) * RAYS_A_TASK, N); ++i) {
      float start = march_start(m, first[i], jitter[i]);
      const auto keep = [&](int, const float* p, float middle, float step) {
        if (static_cast<int64_t>(found[task].size()) < capacity) found[task].push_back({{p[0], p[1], p[2]}, middle, step});
      };
      ends[i] = i < asked ? march(m, origin + 3 * i, direction + 3 * i, bits, start, last[i], limit, keep) : 0;
    }
  });
  for (int64_t i = 1; i < N; ++i) ends[i] += ends[i - 1];
  each(tasks, 1, [&](int64_t task) {
    const Sample* sample = found[task].data();
    for (int64_t i = task * RAYS_A_TASK; i < std::min((task + 1) * RAYS_A_TASK, N); ++i) {
      if (!place_ray(i > 0 ? ends[i - 1] : 0, ends[i], i, asked, capacity, row + 2 * i, count)) continue;
      for (int k = 0; k < row[2 * i + 1]; ++k, ++sample)
        samples.write(row[2 * i] + k, sample->position, direction + 3 * i, sample->middle, sample->dt, static_cast<int32_t>(i));
    }
  });
  const int64_t written = count[0];
  each(capacity - written, ROWS_A_TASK, [&](int64_t i) { samples.pad(written + i); });
  return {positions, sample_directions, t, dt, ray_index, rays, counts};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> march_rays(const Tensor& alive_, const Tensor& t_now_, const Tensor& origins_,
                                                              const Tensor& directions_, const Tensor& far_, const Tensor& bitfield_,
                                                              int64_t steps, double bound, int64_t cascades, int64_t grid_size,
                                                              bool contract, double dt_gamma, int64_t max_steps) {
  const March m = make_march(bound, cascades, grid_size, contract, dt_gamma, max_steps);
  const Tensor alive = alive_.contiguous(), t_now = t_now_.contiguous(), origins = origins_.contiguous(),
               directions = directions_.contiguous();
  const Tensor far = far_.contiguous(), bitfield = bitfield_.contiguous();
  const int64_t A = alive.size(0), N = origins.size(0);
  const auto options = origins.options();
  Tensor positions = at::empty({A * steps, 3}, options), sample_directions = at::empty({A * steps, 3}, options);
  Tensor t = at::empty({A * steps}, options), dt = at::empty({A * steps}, options), t_next = at::empty({A}, options);
  const auto ray_of = alive.const_data_ptr<int32_t>();
  const auto now = t_now.const_data_ptr<float>(), last = far.const_data_ptr<float>();
  const auto origin = origins.const_data_ptr<float>(), direction = directions.const_data_ptr<float>();
  const auto bits = bitfield.const_data_ptr<uint8_t>();
  auto next = t_next.mutable_data_ptr<float>();
  const SampleRows samples{positions.mutable_data_ptr<float>(), sample_directions.mutable_data_ptr<float>(), t.mutable_data_ptr<float>(),
                           dt.mutable_data_ptr<float>(), nullptr};
  each(A, RAYS_A_TASK, [&](int64_t a) {
    next[a] = march_alive(m, ray_of[a], N, now, origin, direction, last, bits, a * steps, static_cast<int>(steps), samples);
  });
  return {positions, sample_directions, t, dt, t_next};
}

}  // namespace

TORCH_LIBRARY_IMPL(raymarching, CPU, m) {
  m.impl("generate_rays", generate_rays);
  m.impl("near_far_from_aabb", near_far_from_aabb);
  m.impl("morton3D", morton3D);
  m.impl("morton3D_invert", morton3D_invert);
  m.impl("packbits", packbits);
  m.impl("contract", contract_positions);
  m.impl("flatten_rays", flatten_rays);
  m.impl("sph_from_ray", sph_from_ray);
  m.impl("march_rays_train", march_rays_train);
  m.impl("march_rays", march_rays);
}

}  // namespace raymarching
