// The mathematics of the loss of composited pixels and of its gradient at the raw outputs, one copy for the CPU loops and the CUDA kernel.
//
// A raw row is the logarithm of density and the logits of three colours c. With the weights w of composite_math.h a ray of opacity
// o = sum w has the colour C = sum w c + (1 - o) background. The loss is the mean over the kept rays of |C - target|^2 / 3, plus
// entropy_weight times the mean of the binary entropy of o, in bits. 1 - o is the transmittance left behind the last sample that counts;
// taken as such it keeps its digits where the ray is nearly opaque, as the sum of the weights does where it is nearly empty.
//
// Gradient. Let q = dL/dC. Then dL/dw_i = q . c_i + dL/do =: g_i, and composite_math.h goes on from g to
// dL/dtau_i = T_{i+1} (g_i - V_i). The factors dtau/ddensity = length and ddensity/draw are taken together as `reach`.
//
// Distortion (Barron et al. 2022, mip-NeRF 360, equation 15). With the middle m and the length s of each sample's interval in normalised
// spacing, a ray has D = sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 s_i. As m ascends along the ray,
// dD/dw_i = 2 m_i (o - 2 S_i) + 4 Q_i - 2 sum_j w_j m_j + 2/3 w_i s_i,  S_i = sum over j >= i of w_j,  Q_i = sum over j >= i of w_j m_j.
// Measured from the weighted mean of m the third term is zero. dD/dw joins g. D is of second degree in w, so it is half of
// sum_i w_i dD/dw_i.
#pragma once

#include "composite_math.h"

namespace raymarching {

constexpr int COLOURS = 3;
constexpr int RAW = 1 + COLOURS;  // columns of a raw row

constexpr double SLOPE_MOST = 3269017.3724721107, SLOPE_LEAST = 3.0590232050182579e-07;  // exp of 15 and of -15
constexpr double ENTROPY_MARGIN = 1e-5;  // keeps the logarithms finite at opacities 0 and 1

// What the loss is made of; delta [samples, RAW] is made from it. target [rays, target_columns], background [rays, COLOURS]; rows [rays, 2]
// and counts [3] as from the march. spacing [samples, 2] is read where distortion_weight is not zero, t [samples] where near_scale is not.
template <class Raw, class Real>
struct LossProblem {
  const Raw* raw;
  const Real* dt;
  const int32_t *rows, *counts;
  const Real *target, *background;
  int64_t rays, samples;
  int target_columns;
  Real T_thresh, entropy_weight;
  const Real *spacing, *t;
  Real distortion_weight, near_scale;

  HOST_DEVICE int64_t used() const { return counts[0] < 0 ? 0 : counts[0] < samples ? counts[0] : samples; }
  HOST_DEVICE int64_t kept() const { return counts[1] < 0 ? 0 : counts[1] < rays ? counts[1] : rays; }
  HOST_DEVICE bool distorts() const { return distortion_weight != 0; }
  HOST_DEVICE bool fades() const { return near_scale != 0; }
  HOST_DEVICE Real share() const { return Real(1) / static_cast<Real>(counts[1] > 1 ? kept() : 1); }  // of a ray in the mean
};

// A sample after activation. `through` = exp(-tau) and alpha = 1 - exp(-tau), each to full precision.
template <class Real>
struct Activated {
  Real through, alpha, reach, colour[COLOURS];
};

// A sample without length is empty, even where the density is infinite. The exponential's derivative is taken at most at 15 and at least
// at -15.
template <class Real>
HOST_DEVICE Activated<Real> activate(const Real raw[RAW], Real dt) {
  Activated<Real> sample;
  const Real density = std::exp(raw[0]), length = dt > 0 ? dt : Real(0), tau = length > 0 ? density * length : Real(0);
  const Real less = density > Real(SLOPE_MOST) ? Real(SLOPE_MOST) : density;
  sample.through = std::exp(-tau), sample.alpha = -std::expm1(-tau);
  sample.reach = length * (less < Real(SLOPE_LEAST) ? Real(SLOPE_LEAST) : less);
  for (int k = 0; k < COLOURS; ++k) sample.colour[k] = 1 / (1 + std::exp(-raw[1 + k]));
  return sample;
}

// The colour that a ray is to reach, and what shows behind it.
template <class Real>
struct Pixel {
  Real target[COLOURS], background[COLOURS];
};

template <class Raw, class Real>
HOST_DEVICE Pixel<Real> pixel_of(const LossProblem<Raw, Real>& problem, int64_t ray) {
  Pixel<Real> pixel;
  const Real* target = problem.target + ray * problem.target_columns;
  const Real alpha = problem.target_columns > COLOURS ? target[COLOURS] : Real(1);
  for (int k = 0; k < COLOURS; ++k) {
    pixel.background[k] = problem.background[ray * COLOURS + k];
    pixel.target[k] = problem.target_columns > COLOURS ? target[k] * alpha + pixel.background[k] * (1 - alpha) : target[k];
  }
  return pixel;
}

// What a ray adds to the two numbers, and the gradient of the loss at its colour and at its opacity.
template <class Real>
struct PixelLoss {
  Real loss, squared_error, at_colour[COLOURS], at_opacity;
};

template <class Real>
HOST_DEVICE Real within_margin(Real x) {
  return x < Real(ENTROPY_MARGIN) ? Real(ENTROPY_MARGIN) : x > Real(1 - ENTROPY_MARGIN) ? Real(1 - ENTROPY_MARGIN) : x;
}

// sum: of w c over the ray; left: 1 - opacity; share: of the ray in the means.
template <class Real>
HOST_DEVICE PixelLoss<Real> pixel_loss(const Pixel<Real>& pixel, const Real sum[COLOURS], Real opacity, Real left, Real share,
                                       Real entropy_weight) {
  PixelLoss<Real> result;
  result.squared_error = result.at_opacity = 0;
  for (int k = 0; k < COLOURS; ++k) {
    const Real error = sum[k] + left * pixel.background[k] - pixel.target[k];
    result.squared_error += error * error * (share / COLOURS);
    result.at_colour[k] = 2 * error * (share / COLOURS);
    result.at_opacity -= result.at_colour[k] * pixel.background[k];
  }
  result.loss = result.squared_error;
  if (entropy_weight != 0) {
    const Real p = within_margin(opacity), q = within_margin(left), bits = std::log2(p), bits_left = std::log2(q);
    result.loss -= entropy_weight * share * (p * bits + q * bits_left);
    if (p == opacity && q == left) result.at_opacity += entropy_weight * share * (bits_left - bits);
  }
  return result;
}

// g: the gradient at a sample's weight.
template <class Real>
HOST_DEVICE Real weight_gradient(const PixelLoss<Real>& pixel, const Real colour[COLOURS]) {
  Real g = pixel.at_opacity;
  for (int k = 0; k < COLOURS; ++k) g += pixel.at_colour[k] * colour[k];
  return g;
}

// The gradient at a raw row; `behind` is the transmittance behind the sample, V as in composite_math.h.
template <class Real>
HOST_DEVICE void raw_gradient(const PixelLoss<Real>& pixel, const Activated<Real>& sample, Real weight, Real behind, Real g, Real V,
                              Real delta[RAW]) {
  delta[0] = behind * (g - V) * sample.reach;
  for (int k = 0; k < COLOURS; ++k) delta[1 + k] = weight * pixel.at_colour[k] * sample.colour[k] * (1 - sample.colour[k]);
}

// A sample in normalised spacing.
template <class Real>
struct Interval {
  Real middle, length;
};

template <class Raw, class Real>
HOST_DEVICE Interval<Real> interval_of(const LossProblem<Raw, Real>& problem, int64_t sample) {
  const Real begin = problem.spacing[2 * sample], end = problem.spacing[2 * sample + 1];
  return {(begin + end) / 2, end - begin};
}

// moment: the sum of w m over the ray. A ray without weight has no mean, and needs none.
template <class Real>
HOST_DEVICE Real mean_middle(Real moment, Real opacity) {
  return opacity > 0 ? moment / opacity : moment;
}

// dD/dw of a sample; `middle` is measured from the mean, weight_from and moment_from are S and Q.
template <class Real>
HOST_DEVICE Real distortion_gradient(Real middle, Real length, Real weight, Real opacity, Real weight_from, Real moment_from) {
  return 2 * (middle * (opacity - 2 * weight_from) + 2 * moment_from) + Real(2) / 3 * weight * length;
}

// Gradients near a camera are made smaller, by the square of the distance (Philip and Deschaintre 2023, "Floaters No More"). A NaN stays.
template <class Raw, class Real>
HOST_DEVICE Real fade(const LossProblem<Raw, Real>& problem, int64_t sample) {
  const Real distance = problem.t[sample] / problem.near_scale, square = distance * distance;
  return square > 1 ? Real(1) : square;
}

// One ray, one sample after another; delta was zeroed, and so were weights, which may be null. The first walk leaves the transmittance
// behind each sample in delta, the second, from the back, turns it into the gradient.
template <class Raw, class Real>
HOST_DEVICE PixelLoss<Real> composite_loss_ray(const LossProblem<Raw, Real>& problem, int64_t ray, Real* delta, Real* weights) {
  const auto sample_at = [&](int64_t i) {
    const Real raw[RAW] = {static_cast<Real>(problem.raw[i * RAW]), static_cast<Real>(problem.raw[i * RAW + 1]),
                           static_cast<Real>(problem.raw[i * RAW + 2]), static_cast<Real>(problem.raw[i * RAW + 3])};
    return activate(raw, problem.dt[i]);
  };
  const Span span = span_of(problem.rows, ray, problem.used());
  Real T = 1, opacity = 0, moment = 0, sum[COLOURS] = {};
  int64_t end = span.first;
  for (; end < span.first + span.count && !(T < problem.T_thresh); ++end) {
    const Activated<Real> sample = sample_at(end);
    const Real weight = T * sample.alpha;
    opacity += weight;
    if (problem.distorts()) moment += weight * interval_of(problem, end).middle;
    if (weights) weights[end] = weight;
    T *= sample.through;
    delta[end * RAW] = T;
    for (int k = 0; k < COLOURS; ++k) sum[k] += weight * sample.colour[k];
  }
  PixelLoss<Real> pixel = pixel_loss(pixel_of(problem, ray), sum, opacity, T, problem.share(), problem.entropy_weight);
  const Real mean = mean_middle(moment, opacity), distortion_share = problem.distortion_weight * problem.share();
  Real V = 0, weight_from = 0, moment_from = 0, distortion = 0;
  for (int64_t i = end - 1; i >= span.first; --i) {
    const Activated<Real> sample = sample_at(i);
    const Real before = i > span.first ? delta[(i - 1) * RAW] : Real(1), weight = before * sample.alpha;
    Real g = weight_gradient(pixel, sample.colour);
    if (problem.distorts()) {
      const Interval<Real> interval = interval_of(problem, i);
      const Real middle = interval.middle - mean;
      weight_from += weight, moment_from += weight * middle;
      const Real at_weight = distortion_gradient(middle, interval.length, weight, opacity, weight_from, moment_from);
      distortion += weight * at_weight / 2;
      g += distortion_share * at_weight;
    }
    raw_gradient(pixel, sample, weight, delta[i * RAW], g, V, delta + i * RAW);
    V = sample.through * V + sample.alpha * g;
    if (problem.fades())
      for (int k = 0; k < RAW; ++k) delta[i * RAW + k] *= fade(problem, i);
  }
  if (problem.distorts()) pixel.loss += distortion_share * distortion;
  return pixel;
}

}  // namespace raymarching
