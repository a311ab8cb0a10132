// Real spherical harmonics as polynomials in x, y, z by recurrences, shared by the CPU loops and the CUDA kernels:
// Y_lm = N_lm Q_l|m|(z) C_m(x, y) for m >= 0, with S_|m| in place of C_m for m < 0, at column l^2 + l + m. Here C_m + i S_m = (x + i y)^m
// and Q_lm = (-1)^m d^m P_l / dz^m with the Legendre polynomial P_l, hence dQ_lm / dz = -Q_l,m+1.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#else
#define HOST_DEVICE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#endif

namespace shencoder {

constexpr int max_degree = 4;

// N_lm = sqrt((2 - [m = 0]) (2l + 1) / (4 pi) (l - m)! / (l + m)!) for m >= 0; l and m are known to the compiler once its loops are
// unrolled.
template <typename Real>
HOST_DEVICE Real normalisation(int l, int m) {
    const double table[max_degree][max_degree] = {{0.28209479177387814, 0, 0, 0},
                                                  {0.48860251190291992, 0.48860251190291992, 0, 0},
                                                  {0.63078313050504009, 0.36418281019735971, 0.18209140509867985, 0},
                                                  {0.7463526651802308, 0.3046971996429772, 0.096353714754685141, 0.0393362393284429}};
    return static_cast<Real>(table[l][m]);
}

// The factors of all Y_lm, l < DEGREE, at one direction.
template <int DEGREE, typename Real>
struct Factors {
    Real cosine[DEGREE], sine[DEGREE];  // C_m, S_m
    Real legendre[DEGREE][DEGREE + 1];  // Q_lm; zero for m > l

    HOST_DEVICE explicit Factors(const Real* direction) {
        const Real x = direction[0], y = direction[1], z = direction[2];
        cosine[0] = 1;
        sine[0] = 0;
        UNROLL
        for (int m = 1; m < DEGREE; ++m) {
            cosine[m] = x * cosine[m - 1] - y * sine[m - 1];
            sine[m] = x * sine[m - 1] + y * cosine[m - 1];
        }
        Real diagonal = 1;  // Q_mm = (-1)^m (2m - 1)!!
        UNROLL
        for (int m = 0; m <= DEGREE; ++m) {
            UNROLL
            for (int l = 0; l < DEGREE; ++l) {
                if (l < m) legendre[l][m] = 0;
                else if (l == m) legendre[l][m] = diagonal;
                else if (l == m + 1) legendre[l][m] = static_cast<Real>(2 * m + 1) * z * legendre[l - 1][m];
                else {
                    const Real rise =
                        static_cast<Real>(2 * l - 1) * z * legendre[l - 1][m] - static_cast<Real>(l + m - 1) * legendre[l - 2][m];
                    legendre[l][m] = rise * static_cast<Real>(1.0 / (l - m));
                }
            }
            diagonal *= -static_cast<Real>(2 * m + 1);
        }
    }
};

template <int DEGREE, typename Real>
HOST_DEVICE void harmonics(const Real* direction, Real* result) {
    const Factors<DEGREE, Real> factors(direction);
    UNROLL
    for (int l = 0; l < DEGREE; ++l) {
        UNROLL
        for (int m = 0; m <= l; ++m) {
            const Real scaled = normalisation<Real>(l, m) * factors.legendre[l][m];
            result[l * l + l - m] = scaled * factors.sine[m];
            result[l * l + l + m] = scaled * factors.cosine[m];
        }
    }
}

// Gradient of sum over columns of slope * Y with respect to x, y and z; dC_m/dx = m C_m-1, dC_m/dy = -m S_m-1, dS_m/dx = m S_m-1, dS_m/dy =
// m C_m-1.
template <int DEGREE, typename Real>
HOST_DEVICE void harmonics_gradient(const Real* direction, const Real* slope, Real* gradient) {
    const Factors<DEGREE, Real> factors(direction);
    gradient[0] = gradient[1] = gradient[2] = 0;
    UNROLL
    for (int l = 1; l < DEGREE; ++l) {
        UNROLL
        for (int m = 0; m <= l; ++m) {
            const Real norm = normalisation<Real>(l, m), cosine = slope[l * l + l + m], sine = m > 0 ? slope[l * l + l - m] : Real(0);
            gradient[2] -= norm * factors.legendre[l][m + 1] * (cosine * factors.cosine[m] + sine * factors.sine[m]);
            if (m == 0) continue;
            const Real scaled = norm * factors.legendre[l][m] * static_cast<Real>(m);
            gradient[0] += scaled * (cosine * factors.cosine[m - 1] + sine * factors.sine[m - 1]);
            gradient[1] += scaled * (sine * factors.cosine[m - 1] - cosine * factors.sine[m - 1]);
        }
    }
}

}  // namespace shencoder
