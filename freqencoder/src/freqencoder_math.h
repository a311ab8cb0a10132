// Sines and cosines of coordinates x at angles 2^k x, shared by the CPU loops and the CUDA kernels. The columns of a row are
// [x], sin(x), cos(x), sin(2 x), cos(2 x), ..., each of them for all coordinates: those of one coordinate lie `stride` apart, which is the
// number of coordinates. LANES coordinates are handled at once: one by a CUDA thread, some on the CPU, where they share vector instructions.
#pragma once

#include <math.h>

#include <cstdint>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace freqencoder {

constexpr int max_degree = 24, max_dimensions = 64;

HOST_DEVICE int columns_of_row(int dimensions, int degree, bool include_input) {
    return dimensions * (2 * degree + (include_input ? 1 : 0));
}

// The accurate forms: angles are large, where fast ones lose all digits.
HOST_DEVICE void sine_cosine(float angle, float& sine, float& cosine) { sincosf(angle, &sine, &cosine); }
HOST_DEVICE void sine_cosine(double angle, double& sine, double& cosine) { sincos(angle, &sine, &cosine); }

template <int LANES, typename Real>
HOST_DEVICE void sines_cosines(const Real* angle, Real* sine, Real* cosine) {
    for (int lane = 0; lane < LANES; ++lane) sine_cosine(angle[lane], sine[lane], cosine[lane]);
}

#ifndef __CUDACC__
// The same for angles up to `near_angle`, without a branch or a call, so that the compiler makes it vector instructions. The angle less its
// nearest multiple of pi / 2 is taken in double, in two parts the first of which has 33 bits (so that its multiples are exact), and lies
// within pi / 4 of zero, where Taylor series up to the tenth power are closer than float32 can tell.
constexpr float near_angle = 1e6f;

inline void near_sine_cosine(float angle, float& sine, float& cosine) {
    constexpr double two_over_pi = 0.63661977236758134, half_pi = 1.5707963267341256, half_pi_rest = 6.0771005065061922e-11;
    const double quarters = rint(angle * two_over_pi);
    const double r = angle - quarters * half_pi - quarters * half_pi_rest, rr = r * r;
    const double s = r * (1 + rr * (-1.0 / 6 + rr * (1.0 / 120 + rr * (-1.0 / 5040 + rr * (1.0 / 362880)))));
    const double c = 1 + rr * (-1.0 / 2 + rr * (1.0 / 24 + rr * (-1.0 / 720 + rr * (1.0 / 40320 - rr * (1.0 / 3628800)))));
    const double quadrant = quarters - 4 * floor(quarters * 0.25);
    const bool odd = quadrant == 1 || quadrant == 3;
    const double first = odd ? c : s, second = odd ? s : c;
    sine = static_cast<float>(quadrant >= 2 ? -first : first);
    cosine = static_cast<float>(quadrant == 1 || quadrant == 2 ? -second : second);
}

template <int LANES>
inline void sines_cosines(const float* angle, float* sine, float* cosine) {
    int near = 0;
    for (int lane = 0; lane < LANES; ++lane) near += fabsf(angle[lane]) <= near_angle;
    for (int lane = 0; lane < LANES; ++lane) near_sine_cosine(angle[lane], sine[lane], cosine[lane]);
    if (near < LANES) sines_cosines<LANES, float>(angle, sine, cosine);
}
#endif

// Writes the columns of LANES coordinates, the first of each to output[column].
template <int LANES, typename Real, typename Value>
HOST_DEVICE void encode(const Real* x, const int* column, int stride, int degree, bool include_input, Value* output) {
    Real angle[LANES], sine[LANES], cosine[LANES];
    for (int lane = 0; lane < LANES; ++lane) {
        angle[lane] = x[lane];
        if (include_input) output[column[lane]] = static_cast<Value>(x[lane]);
    }
    if (include_input) output += stride;
    for (int k = 0; k < degree; ++k, output += 2 * stride) {
        sines_cosines<LANES>(angle, sine, cosine);
        for (int lane = 0; lane < LANES; ++lane) {
            output[column[lane]] = static_cast<Value>(sine[lane]);
            output[column[lane] + stride] = static_cast<Value>(cosine[lane]);
            angle[lane] += angle[lane];  // exact
        }
    }
}

// Derivatives with respect to LANES coordinates of the sum of slope * column over their columns, the first of each at slope[column].
template <int LANES, typename Real, typename Value>
HOST_DEVICE void encode_gradient(const Real* x, const int* column, int stride, int degree, bool include_input, const Value* slope,
                                 Real* gradient) {
    Real angle[LANES], sine[LANES], cosine[LANES], sum[LANES], scale = 1;
    for (int lane = 0; lane < LANES; ++lane) {
        angle[lane] = x[lane];
        sum[lane] = include_input ? static_cast<Real>(slope[column[lane]]) : Real(0);
    }
    if (include_input) slope += stride;
    for (int k = 0; k < degree; ++k, slope += 2 * stride, scale += scale) {
        sines_cosines<LANES>(angle, sine, cosine);
        for (int lane = 0; lane < LANES; ++lane) {
            const Real by_sine = static_cast<Real>(slope[column[lane]]), by_cosine = static_cast<Real>(slope[column[lane] + stride]);
            sum[lane] += scale * (by_sine * cosine[lane] - by_cosine * sine[lane]);
            angle[lane] += angle[lane];
        }
    }
    for (int lane = 0; lane < LANES; ++lane) gradient[lane] = sum[lane];
}

}  // namespace freqencoder
