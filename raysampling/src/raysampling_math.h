// The mathematics of intervals along rays, one copy for the CPU loops and the CUDA kernels.
//
// A ray has S intervals between S + 1 ascending edges u in [0, 1]. The spacing g(t) = t / 2 for t < 1, else 1 - 1 / (2 t), is linear in
// distance near the camera and in disparity far from it, and t(u) = g^-1((1 - u) g(near) + u g(far)).
//
// An interval of length dt and density sigma has the optical depth tau = sigma dt and, with tau summed over those before it, the weight
// w = exp(-sum) (1 - exp(-tau)). So a run of intervals has the weight exp(-before) (1 - exp(-(behind - before))), of which no digits are
// lost where the weights are small.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline
#endif

namespace raysampling {

constexpr int most_intervals = 1024;
constexpr double open_length = 1e10;  // opaque wherever there is any density
constexpr double loss_margin = 1e-7;  // keeps the loss finite where a reference weight is 0
constexpr double slope_most = 3269017.3724721107, slope_least = 3.0590232050182579e-07;  // exp of 15 and of -15

// ------------------------------------------------------------------------------------------------------------------- spacing

// Where sampling may happen; near, far [rays].
template <typename Real>
struct Rays {
    const Real *near, *far;
    const int32_t* count;  // [1]
    int64_t rays;

    HOST_DEVICE int64_t used() const { return *count < 0 ? 0 : *count < rays ? *count : rays; }
};

// The spacing of a ray. 1 - g is kept beside g: far away g has no digits left to tell distances apart.
template <typename Real>
struct Spacing {
    Real near, extent;    // g(near), g(far) - g(near)
    Real far, disparity;  // 1 - g(far), (1 - g(near)) - (1 - g(far))
    bool empty;           // no samples
};

template <typename Real>
HOST_DEVICE Spacing<Real> spacing_of(const Rays<Real>& rays, int64_t used, int64_t ray) {
    if (ray >= used) return {0, 0, 0, 0, true};
    const Real near = rays.near[ray], far = rays.far[ray];
    if (!(near < far && far - far == 0 && near - near == 0)) return {0, 0, 0, 0, true};  // also NaN and infinity
    const Real rest_near = near < 1 ? 1 - near / 2 : Real(0.5) / near, rest_far = far < 1 ? 1 - far / 2 : Real(0.5) / far;
    const Real g_near = near < 1 ? near / 2 : 1 - rest_near, g_far = far < 1 ? far / 2 : 1 - rest_far;
    return {g_near, g_far - g_near, rest_far, rest_near - rest_far, false};
}

// t(u), in world units.
template <typename Real>
HOST_DEVICE Real distance_at(const Spacing<Real>& spacing, Real u) {
    const Real g = spacing.near + u * spacing.extent;
    return g < Real(0.5) ? 2 * g : Real(0.5) / (spacing.far + (1 - u) * spacing.disparity);
}

// The length of the interval between two edges, 0 on a ray without samples and where the edges do not ascend. The difference of the edges
// is exact; that of their distances would have few digits left where the interval is narrow.
template <typename Real>
HOST_DEVICE Real length_of(const Spacing<Real>& spacing, Real u, Real next) {
    if (spacing.empty) return 0;
    const Real t = distance_at(spacing, u), end = distance_at(spacing, next), step = next - u;
    const Real length = end < 1 ? 2 * step * spacing.extent : t >= 1 ? 2 * t * (step * spacing.disparity) * end : end - t;
    return length > 0 ? length : Real(0);
}

// ------------------------------------------------------------------------------------------------------------------- placing

// MeRF (arXiv 2302.12249, equation 2), as in raymarching: the unit cube stays, all else goes to max-norm below 2. Of equal dominant axes
// the first counts.
template <typename Real>
HOST_DEVICE void contract(Real* p) {
    Real m = 0;
    for (int i = 0; i < 3; ++i) m = std::fabs(p[i]) > m ? std::fabs(p[i]) : m;
    if (!(m > 1)) return;
    const int dominant = std::fabs(p[0]) == m ? 0 : std::fabs(p[1]) == m ? 1 : 2;
    for (int i = 0; i < 3; ++i) p[i] = i == dominant ? std::copysign(2 - 1 / m, p[i]) : p[i] / m;
}

// What samples are made of: edges [rays, intervals + 1]; origins, directions [rays, 3].
template <typename Real>
struct Placing {
    Rays<Real> rays;
    const Real *edges, *origins, *directions;
    int intervals;
    bool contracted, last_open;
};

template <typename Real>
struct Sample {
    Real position[3], t, dt;
};

template <typename Real>
HOST_DEVICE Sample<Real> sample_at(const Placing<Real>& placing, const Spacing<Real>& spacing, int64_t ray, int k) {
    Sample<Real> sample{};
    if (spacing.empty) return sample;
    const Real* edges = placing.edges + ray * (placing.intervals + 1);
    sample.dt = length_of(spacing, edges[k], edges[k + 1]);
    sample.t = distance_at(spacing, edges[k]) + sample.dt / 2;
    for (int i = 0; i < 3; ++i) sample.position[i] = placing.origins[3 * ray + i] + sample.t * placing.directions[3 * ray + i];
    if (placing.contracted) contract(sample.position);
    if (placing.last_open && k == placing.intervals - 1) sample.dt = Real(open_length);
    return sample;
}

// ---------------------------------------------------------------------------------------------------------------- resampling

// An interval without length is empty, even where the density is infinite.
template <typename Real>
HOST_DEVICE Real optical_depth(Real logit, Real length) {
    return length > 0 ? std::exp(logit) * length : Real(0);
}

template <typename Real>
HOST_DEVICE Real weight_of(Real depth_before, Real depth) {
    return std::exp(-depth_before) * -std::expm1(-depth);
}

// What edges are drawn from: edges [rays, intervals + 1], logit [rays, intervals]; noise [rays] or, with own_noise, [rays, wanted + 1];
// anneal [1], null = 1.
template <typename Logit, typename Real>
struct Resampling {
    Rays<Real> rays;
    const Real* edges;
    const Logit* logit;
    const Real *noise, *anneal;
    int intervals, wanted;
    bool own_noise;
    Real padding;
};

// The exponent, held to [0, 1]; NaN counts as 1.
template <typename Real>
HOST_DEVICE Real exponent_of(const Real* anneal) {
    if (!anneal || !(*anneal < 1)) return 1;
    return *anneal > 0 ? *anneal : Real(0);
}

// The share of the new edges that an interval is to get, before it is normalised.
template <typename Real>
HOST_DEVICE Real mass_of(Real weight, Real exponent, Real padding) {
    return (exponent == 1 ? weight : std::pow(weight, exponent)) + padding;
}

// Which quantile the new edge j is: (j + noise) / (wanted + 1), noise held to [0, 1]; NaN counts as 0.5.
template <typename Logit, typename Real>
HOST_DEVICE Real quantile_of(const Resampling<Logit, Real>& resampling, int64_t ray, int j) {
    const Real noise = resampling.noise[resampling.own_noise ? ray * (resampling.wanted + 1) + j : ray];
    const Real held = noise < 0 ? Real(0) : noise > 1 ? Real(1) : noise == noise ? noise : Real(0.5);
    return (static_cast<Real>(j) + held) / static_cast<Real>(resampling.wanted + 1);
}

// The mass can be divided by: it is neither 0 nor NaN nor infinite.
template <typename Real>
HOST_DEVICE bool usable(Real mass) {
    return mass > 0 && mass - mass == 0;
}

// The edge below which the share `quantile` of the mass lies; evenly spaced with `even`. cumulative [intervals + 1]: the mass before each
// edge.
template <typename Real>
HOST_DEVICE Real edge_at(Real quantile, const Real* edges, const Real* cumulative, int intervals, bool even) {
    int low = 0, high = intervals;
    Real part = quantile;
    if (!even) {
        const Real wanted = quantile * cumulative[intervals];
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            if (cumulative[middle] <= wanted) low = middle;
            else high = middle;
        }
        const Real mass = cumulative[high] - cumulative[low];
        part = mass > 0 ? (wanted - cumulative[low]) / mass : Real(0);
        part = part < 0 ? Real(0) : part > 1 ? Real(1) : part;
    }
    const Real edge = edges[low] + part * (edges[high] - edges[low]);
    return edges[high] < edge ? edges[high] : edge;
}

// ------------------------------------------------------------------------------------------------------------ interlevel loss

// What the loss is made of: edges_ref [rays, intervals_ref + 1], weights_ref [rays, intervals_ref]; edges [rays, intervals + 1], logit
// [rays, intervals] of the proposal.
template <typename Logit, typename Real>
struct Interlevel {
    Rays<Real> rays;
    const Real *edges_ref, *weights_ref, *edges;
    const Logit* logit;
    int intervals_ref, intervals;
};

struct Range {
    int begin, end;
};

// The intervals that have an inner point in common with (low, high).
template <typename Real>
HOST_DEVICE Range overlap(const Real* edges, int intervals, Real low, Real high) {
    int begin = 0, end = 0;  // begin: how many intervals end at or before low; end: how many begin before high
    for (int left = intervals; left > 0;) {
        const int half = left / 2;
        if (edges[begin + half + 1] <= low) begin += half + 1, left -= half + 1;
        else left = half;
    }
    for (int left = intervals; left > 0;) {
        const int half = left / 2;
        if (edges[end + half] < high) end += half + 1, left -= half + 1;
        else left = half;
    }
    return {begin, end};
}

// The weight of a run of intervals; depth [intervals + 1]: the optical depth before each edge.
template <typename Real>
HOST_DEVICE Real weight_between(const Real* depth, const Range& range) {
    if (range.begin >= range.end) return 0;
    const Real through = std::exp(-depth[range.begin]);
    return through == 0 ? Real(0) : through * -std::expm1(depth[range.begin] - depth[range.end]);
}

// What one reference interval adds to the loss, and the gradient at its bound with the sign turned. share: of a ray in the mean.
template <typename Real>
struct Excess {
    Real loss, pull;
};

template <typename Real>
HOST_DEVICE Excess<Real> excess_of(Real weight_ref, Real bound, Real share) {
    const Real over = weight_ref < bound ? Real(0) : weight_ref - bound;  // NaN stays
    const Real part = over / (weight_ref + Real(loss_margin)) * share;
    return {over * part, 2 * part};
}

// The gradient at the weight of a proposal interval, from the pulls [intervals_ref] of the reference intervals that it overlaps.
template <typename Real>
HOST_DEVICE Real weight_gradient(const Real* pulls, const Range& range) {
    Real sum = 0;
    for (int i = range.begin; i < range.end; ++i) sum -= pulls[i];
    return sum;
}

// The gradient at a logit: g is that at the interval's weight, V the sum of w g over the intervals behind it divided by the transmittance
// there, depth_behind the optical depth up to its end. V obeys V <- (1 - exp(-tau)) g + exp(-tau) V from interval to interval towards the
// camera, with 0 behind the last. The exponential's derivative is taken at most at 15 and at least at -15.
template <typename Real>
HOST_DEVICE Real logit_gradient(Real g, Real V, Real depth_behind, Real length, Real logit) {
    const Real density = std::exp(logit), less = density > Real(slope_most) ? Real(slope_most) : density;
    return std::exp(-depth_behind) * (g - V) * length * (less < Real(slope_least) ? Real(slope_least) : less);
}

}  // namespace raysampling
