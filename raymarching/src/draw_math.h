// The mathematics of drawing training rays, one copy for the CPU loops and the CUDA kernels: which photo and pixel a row of random numbers
// means, and how the number of rays follows the samples that they take.
#pragma once

#include "raymarching_math.h"

namespace raymarching {

// The training photos, n of them: pixels [rows, channels], and of each photo its first row, (width, height) and view.
struct Photos {
  const uint8_t* pixels;
  int64_t rows;
  int channels;  // 3 or 4
  const int64_t *offsets, *sizes, *images;
  int64_t count;
};

// All views, V of them, with the depths between which each may be sampled, and the box around everything.
struct Views {
  const float *poses, *intrinsics, *distortion;
  const int32_t* lens;
  const float *near, *far;
  int64_t count;
  const float* aabb;
};

// The rays that are written: origins and directions [N, 3], near, far and image [N], target [N, channels].
struct DrawnRays {
  float *origins, *directions, *near, *far;
  int64_t* image;
  float* target;
};

// The cell of [0, cells) that a number in [0, 1) falls in, each as likely. The product may round up to `cells`. NaN falls in the first.
HOST_DEVICE int64_t cell_of(float chance, int64_t cells) {
  if (!(chance > 0 && cells > 0)) return 0;
  const float place = chance * static_cast<float>(cells);
  return place < static_cast<float>(cells - 1) ? static_cast<int64_t>(place) : cells - 1;
}

// The row of a photo's pixel (x, y) among all pixels; negative where there is none.
HOST_DEVICE int64_t pixel_row(const Photos& photos, int64_t photo, int64_t x, int64_t y) {
  const int64_t width = photos.sizes[2 * photo], height = photos.sizes[2 * photo + 1];
  // Without sign, where foreign numbers may wrap around, and one comparison then finds those beyond either end.
  const uint64_t row = static_cast<uint64_t>(photos.offsets[photo]) + static_cast<uint64_t>(y) * static_cast<uint64_t>(width) + x;
  return x < width && y < height && row < static_cast<uint64_t>(photos.rows) ? static_cast<int64_t>(row) : -1;
}

// Writes ray i. photo_chance chooses the photo, chance[1] and chance[2] the pixel in it.
HOST_DEVICE void draw_ray(const Photos& photos, const Views& views, float photo_chance, const float* chance, int64_t i,
                          const DrawnRays& rays) {
  const int64_t photo = cell_of(photo_chance, photos.count), image = photos.images[photo];
  const int64_t x = cell_of(chance[1], photos.sizes[2 * photo]), y = cell_of(chance[2], photos.sizes[2 * photo + 1]);

  // The pixel is asked for first and needed last: on a GPU the work between hides the wait.
  const int64_t row = pixel_row(photos, photo, x, y);
  float target[4];
  for (int c = 0; c < 4; ++c)
    if (c < photos.channels) target[c] = row < 0 ? NAN : static_cast<float>(photos.pixels[row * photos.channels + c]);

  const Camera camera = camera_of(image, views.count, views.poses, views.intrinsics, views.distortion, views.lens);
  const float pixel[2] = {static_cast<float>(x) + 0.5f, static_cast<float>(y) + 0.5f};
  float origin[3], direction[3], first, last;
  pixel_ray(pixel, camera, origin, direction);
  near_far(origin, direction, views.aabb, 0, first, last);
  if (camera.pose) first = greatest(views.near[image], first), last = least(views.far[image], last);

  for (int axis = 0; axis < 3; ++axis) rays.origins[3 * i + axis] = origin[axis], rays.directions[3 * i + axis] = direction[axis];
  rays.near[i] = first, rays.far[i] = last, rays.image[i] = image;
  for (int c = 0; c < 4; ++c)
    if (c < photos.channels) rays.target[photos.channels * i + c] = target[c] / 255;
}

// What the number of rays aims at: `wanted` samples in all, by at most `most` and at least `least` times as many rays as before.
struct RayAim {
  double wanted, least, most;
  int32_t capacity;
};

inline RayAim make_aim(int64_t capacity, int64_t samples, double fill, double growth) {
  return {fill * static_cast<double>(samples), 1 / std::pow(growth, 4), growth, static_cast<int32_t>(capacity)};
}

// The next number of rays, after `rays` of them asked for `samples`. Double, which holds every count.
HOST_DEVICE int32_t next_ray_count(const RayAim& aim, int32_t rays, int32_t samples) {
  const double ratio = fmin(fmax(aim.wanted / (samples > 1 ? samples : 1), aim.least), aim.most);
  return static_cast<int32_t>(fmin(fmax(rint(rays * ratio), 1.0), static_cast<double>(aim.capacity)));
}

}  // namespace raymarching
