// The mathematics of compositing and of its gradient, one copy for the CPU loops and the CUDA kernels.
//
// With optical depth tau = density * dt, alpha = 1 - exp(-tau) and transmittance T_i = exp(-sum of tau before i), the weight is w = T alpha
// and a ray gives sum w f (its features), sum w (opacity) and sum w t (depth) (Max 1995; Mildenhall et al. 2020, equation 3).
//
// Gradient. Let g_i be dL/dw_i from all four outputs together, and V_i = sum over j > i of w_j g_j, divided by the transmittance T_{i+1}
// behind i. Then dL/dtau_i = T_{i+1} (g_i - V_i), and V obeys V_{i-1} = alpha_i g_i + (1 - alpha_i) V_i with V = 0 behind the last sample.
// Walking this from the back subtracts no running sums, so it stays accurate where T is small, and needs no finite tau: density may be
// infinite.
#pragma once

#include "raymarching_math.h"

namespace raymarching {

constexpr int MAX_CHANNELS = 16;

// What the four outputs are made of. features [M, K]; the rest [M].
template <class Real>
struct Medium {
  const Real *density, *features, *t, *dt;
  int channels;
};

// Gradients that arrive at the outputs; null = zero.
template <class Real>
struct Cotangents {
  const Real *composited, *opacity, *depth, *weights;
};

// (first, count) of a ray; count 0 where the row points outside the buffers, so that foreign rows cannot reach foreign memory.
struct Span {
  int64_t first;
  int count;
};

HOST_DEVICE Span span_of(const int32_t* rays, int64_t ray, int64_t samples) {
  const int64_t first = rays[2 * ray], count = rays[2 * ray + 1];
  const bool sound = first >= 0 && count > 0 && first + count <= samples;
  return {sound ? first : 0, sound ? static_cast<int>(count) : 0};
}

template <class Real>
HOST_DEVICE Real length_of(const Medium<Real>& medium, int64_t sample) {
  return medium.dt[sample] > 0 ? medium.dt[sample] : Real(0);
}

// A sample without length is empty, even where the density is infinite.
template <class Real>
HOST_DEVICE Real optical_depth(const Medium<Real>& medium, int64_t sample) {
  const Real length = length_of(medium, sample);
  return length > 0 ? medium.density[sample] * length : Real(0);
}

// g: the gradient at a sample's weight, gathered from the four outputs.
template <class Real>
HOST_DEVICE Real weight_gradient(const Medium<Real>& medium, const Cotangents<Real>& grad, int64_t ray, int64_t sample) {
  Real g = grad.weights ? grad.weights[sample] : Real(0);
  if (grad.opacity) g += grad.opacity[ray];
  if (grad.depth) g += grad.depth[ray] * medium.t[sample];
  if (grad.composited)
    for (int k = 0; k < medium.channels; ++k)
      g += grad.composited[ray * medium.channels + k] * medium.features[sample * medium.channels + k];
  return g;
}

template <class Real>
HOST_DEVICE void write_feature_gradient(const Cotangents<Real>& grad, int channels, int64_t ray, int64_t sample, Real weight,
                                        Real* grad_features) {
  for (int k = 0; k < channels; ++k)
    grad_features[sample * channels + k] = grad.composited ? weight * grad.composited[ray * channels + k] : Real(0);
}

// Forward, one ray. The sample at which T falls below the threshold still counts; later ones keep weight 0.
template <class Real>
HOST_DEVICE void composite_ray(const Medium<Real>& medium, Span span, Real T_thresh, Real* composited, Real& opacity, Real& depth,
                               Real* weights) {
  Real T = 1, sum[MAX_CHANNELS] = {};
  opacity = depth = 0;
  for (int64_t i = span.first; i < span.first + span.count; ++i) {
    const Real tau = optical_depth(medium, i), weight = T * -std::expm1(-tau);
    weights[i] = weight;
    opacity += weight;
    depth += weight * medium.t[i];
    for (int k = 0; k < medium.channels; ++k) sum[k] += weight * medium.features[i * medium.channels + k];
    T *= std::exp(-tau);
    if (T < T_thresh) break;
  }
  for (int k = 0; k < medium.channels; ++k) composited[k] = sum[k];
}

// Backward, one ray; the buffers were zeroed. The first walk leaves T_{i+1} in grad_density, the second turns it into the gradient.
template <class Real>
HOST_DEVICE void composite_ray_backward(const Medium<Real>& medium, const Cotangents<Real>& grad, int64_t ray, Span span, Real T_thresh,
                                        Real* grad_density, Real* grad_features) {
  Real T = 1;
  int64_t end = span.first;
  while (end < span.first + span.count && !(T < T_thresh)) {
    const Real tau = optical_depth(medium, end), weight = T * -std::expm1(-tau);
    write_feature_gradient(grad, medium.channels, ray, end, weight, grad_features);
    T *= std::exp(-tau);
    grad_density[end++] = T;
  }
  Real V = 0;
  for (int64_t i = end - 1; i >= span.first; --i) {
    const Real tau = optical_depth(medium, i), g = weight_gradient(medium, grad, ray, i);
    grad_density[i] *= length_of(medium, i) * (g - V);
    V = std::exp(-tau) * V - std::expm1(-tau) * g;
  }
}

// The image so far, [N, K], [N], [N], which a wavefront of rendering adds to.
struct Picture {
  float *composited, *opacity, *depth;
};

// One round of rendering for row a of the A alive rays: adds its `steps` samples to the picture, moves the ray on to t_next and marks it
// -1 when it is finished: opaque, or it found fewer samples than `steps` before it left (dt 0 pads). Numbers outside [0, N) are passed
// over.
HOST_DEVICE void composite_alive(const Medium<float>& medium, int64_t a, int64_t steps, int64_t rays, const float* t_next, float T_thresh,
                                 int32_t* alive, float* t_now, const Picture& picture) {
  const int64_t ray = alive[a];
  if (ray < 0 || ray >= rays) return;
  float opacity = picture.opacity[ray], depth = picture.depth[ray], T = 1 - opacity;
  bool finished = false;
  for (int64_t i = a * steps; i < (a + 1) * steps && !finished; ++i) {
    const float tau = optical_depth(medium, i), weight = T * -std::expm1(-tau);
    opacity += weight;
    depth += weight * medium.t[i];
    for (int k = 0; k < medium.channels; ++k)
      picture.composited[ray * medium.channels + k] += weight * medium.features[i * medium.channels + k];
    T *= std::exp(-tau);
    finished = T < T_thresh || !(medium.dt[i] > 0);
  }
  picture.opacity[ray] = opacity, picture.depth[ray] = depth;
  t_now[ray] = t_next[a];
  if (finished) alive[a] = -1;
}

}  // namespace raymarching
