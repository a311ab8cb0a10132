// Real spherical harmonics as polynomials in x, y, z by recurrences, shared by the CPU loops and the CUDA kernels:
// Y_lm = N_lm Q_l|m|(z) C_m(x, y) for m >= 0, with S_|m| in place of C_m for m < 0, at column l^2 + l + m. Here C_m + i S_m = (x + i y)^m
// and Q_lm = (-1)^m d^m P_l / dz^m with the Legendre polynomial P_l. Orders m are visited one after the other and degrees l within them, so
// that few numbers are alive at a time however many columns there are.
#pragma once

#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#else
#define HOST_DEVICE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#endif

namespace shencoder {

constexpr int max_degree = 8;

// Calls work(DEGREE) with the compile-time number; degree is known to be 1 to max_degree.
template <int DEGREE = 1, typename Work>
auto for_degree(int64_t degree, const Work& work) {
    if constexpr (DEGREE < max_degree) {
        if (degree > DEGREE) return for_degree<DEGREE + 1>(degree, work);
    }
    return work(std::integral_constant<int, DEGREE>{});
}

// N_lm = sqrt((2 - [m = 0]) (2l + 1) / (4 pi) (l - m)! / (l + m)!) for m >= 0; l and m are known to the compiler once its loops are
// unrolled.
template <typename Real>
HOST_DEVICE Real normalisation(int l, int m) {
    const double table[max_degree * (max_degree + 1) / 2] = {
        0.28209479177387814,
        0.4886025119029199, 0.4886025119029199,
        0.63078313050504, 0.3641828101973597, 0.18209140509867985,
        0.7463526651802308, 0.30469719964297715, 0.09635371475468514, 0.0393362393284429,
        0.8462843753216345, 0.26761861742291565, 0.063078313050504, 0.016858388283618388, 0.005960340337611201,
        0.9356025796273888, 0.2415715473043717, 0.04565273128546023, 0.009318824751147627, 0.0021964680580751758, 0.0006945841871324551,
        1.0171072362820548, 0.22195099524523101, 0.03509353369580661, 0.005848922282634435, 0.0010678622237644956, 0.00022766899107568562,
        6.57223766418388e-05,
        1.0925484305920792, 0.20647224590289673, 0.028097313806030644, 0.003973560225074134, 0.0005990367431114117, 9.983945718523527e-05,
        1.958012847746254e-05, 5.233009453691465e-06};
    return static_cast<Real>(table[l * (l + 1) / 2 + m]);
}

// (2l + 1) rise - (l + m) before, over l + 1 - m: the step from Q_l-1,m and z Q_lm to Q_l+1,m.
template <typename Real>
HOST_DEVICE Real next_legendre(int l, int m, Real rise, Real before) {
    return (static_cast<Real>(2 * l + 1) * rise - static_cast<Real>(l + m) * before) * static_cast<Real>(1.0 / (l + 1 - m));
}

// The columns of one direction.
template <int DEGREE, typename Real>
HOST_DEVICE void harmonics(const Real* direction, Real* result) {
    const Real x = direction[0], y = direction[1], z = direction[2];
    Real cosine = 1, sine = 0, diagonal = 1;  // C_m, S_m and Q_mm = (-1)^m (2m - 1)!!
    UNROLL
    for (int m = 0; m < DEGREE; ++m) {
        Real before = 0, legendre = diagonal;  // Q_l-1,m and Q_lm
        UNROLL
        for (int l = 0; l < DEGREE; ++l) {
            if (l < m) continue;
            const Real scaled = normalisation<Real>(l, m) * legendre;
            result[l * l + l + m] = scaled * cosine;
            if (m > 0) result[l * l + l - m] = scaled * sine;
            const Real next = next_legendre(l, m, z * legendre, before);
            before = legendre;
            legendre = next;
        }
        const Real turned = m == 0 ? x : x * cosine - y * sine;
        sine = m == 0 ? y : x * sine + y * cosine;
        cosine = turned;
        diagonal *= -static_cast<Real>(2 * m + 1);
    }
}

// Gradient of the sum of slope * Y over the columns of one direction. For each m that sum is a C_m + b S_m with polynomials a and b in z;
// dC_m/dx = m C_m-1, dC_m/dy = -m S_m-1, dS_m/dx = m S_m-1, dS_m/dy = m C_m-1.
template <int DEGREE, typename Real>
HOST_DEVICE void harmonics_gradient(const Real* direction, const Real* slope, Real* gradient) {
    const Real x = direction[0], y = direction[1], z = direction[2];
    Real cosine = 1, sine = 0, cosine_before = 0, sine_before = 0, diagonal = 1, along_x = 0, along_y = 0, along_z = 0;
    UNROLL
    for (int m = 0; m < DEGREE; ++m) {
        Real before = 0, legendre = diagonal, rise_before = 0, rise = 0;  // Q_l-1,m and Q_lm, and what they gain with z
        Real a = 0, b = 0, rise_a = 0, rise_b = 0;
        UNROLL
        for (int l = 0; l < DEGREE; ++l) {
            if (l < m) continue;
            const Real scaled = normalisation<Real>(l, m) * slope[l * l + l + m];
            a += scaled * legendre;
            rise_a += scaled * rise;
            if (m > 0) {
                const Real turned = normalisation<Real>(l, m) * slope[l * l + l - m];
                b += turned * legendre;
                rise_b += turned * rise;
            }
            const Real next = next_legendre(l, m, z * legendre, before);
            const Real next_rise = next_legendre(l, m, legendre + z * rise, rise_before);
            before = legendre;
            legendre = next;
            rise_before = rise;
            rise = next_rise;
        }
        along_z += rise_a * cosine + rise_b * sine;
        along_x += static_cast<Real>(m) * (a * cosine_before + b * sine_before);
        along_y += static_cast<Real>(m) * (b * cosine_before - a * sine_before);
        cosine_before = cosine;
        sine_before = sine;
        cosine = m == 0 ? x : x * cosine_before - y * sine_before;
        sine = m == 0 ? y : x * sine_before + y * cosine_before;
        diagonal *= -static_cast<Real>(2 * m + 1);
    }
    gradient[0] = along_x;
    gradient[1] = along_y;
    gradient[2] = along_z;
}

}  // namespace shencoder
