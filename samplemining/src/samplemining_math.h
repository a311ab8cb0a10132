// Scores, their histogram, the budget and the probability that a row is kept, shared by the CPU loops and the CUDA kernels.
//
// The score of a row is the norm of its gradient. A histogram of the scores holds all that the budget and the draw need to know of the
// whole batch: its bins are the score's exponent and upper 4 bits of mantissa, and each bin knows how many scores it holds and the sum of
// their next 8 bits, hence their mean to 2^-13 of itself. Both are whole numbers, so that no order of adding changes them.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace samplemining {

constexpr int max_columns = 16;
constexpr int64_t max_rows = (int64_t(1) << 28) - 1;  // the most that a bin can count

enum class Budget { tau, ess, fixed };
enum class Law { exponential, linear, uniform, all };

struct Rule {
    Budget budget;
    Law law;
    double fraction, floor, cap, momentum;
    float alpha;
    int64_t room;
};

// ---- bits of a float

HOST_DEVICE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

HOST_DEVICE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

constexpr int exponent_bias = 127;

// 2 to a power from -126 to 127.
HOST_DEVICE float power_of_two(int power) { return float_of(static_cast<uint32_t>(power + exponent_bias) << 23); }

// ---- scores

constexpr float least_score = 1.1754943508e-38f;  // the least normal float; below it a float has no full mantissa for the bins
constexpr float largest_float = 3.4028234664e38f;
constexpr float absent = -1;  // the score of a row that is padding or not finite, which no law keeps

// The norm of values whose squares leave the range of float32: they are scaled by a power of two first, which rounds nothing.
template <typename Values>
HOST_DEVICE float scaled_norm(const Values& values, int columns) {
    float largest = 0;
    for (int k = 0; k < columns; ++k) largest = fmaxf(largest, fabsf(values(k)));
    int exponent = static_cast<int>(bits_of(largest) >> 23);
    exponent = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;  // so that both powers are normal floats
    const float scale = power_of_two(exponent_bias - exponent);
    float sum = 0;
    for (int k = 0; k < columns; ++k) sum = fmaf(values(k) * scale, values(k) * scale, sum);
    return sqrtf(sum) * power_of_two(exponent - exponent_bias);
}

// The score of a row of gradients: `absent` where its norm is not finite, 0 where it is below `least_score`.
template <typename Values>
HOST_DEVICE float score_of(const Values& values, int columns) {
    float sum = 0;
    for (int k = 0; k < columns; ++k) sum = fmaf(values(k), values(k), sum);
    const bool safe = sum > 1e-24f && sum < 1e38f;  // what fell below the range of float32 adds nothing to such a sum
    const float norm = safe ? sqrtf(sum) : scaled_norm(values, columns);
    return !(norm <= largest_float) ? absent : norm < least_score ? 0.0f : norm;
}

// ---- histogram

constexpr int mantissa_bits = 4, rest_bits = 8;
constexpr int bins = 1 << (8 + mantissa_bits);
constexpr int bins_of_exponent = 1 << mantissa_bits;
constexpr int rest_sum_bits = 28 + rest_bits;  // of a bin's 64 bits, the lower ones; its count has the others
static_assert(max_rows < (int64_t(1) << (64 - rest_sum_bits)), "a bin can count all rows");

HOST_DEVICE int bin_of(float score) { return static_cast<int>(bits_of(score) >> (23 - mantissa_bits)); }

HOST_DEVICE uint32_t rest_of(float score) { return (bits_of(score) >> (23 - mantissa_bits - rest_bits)) & ((1u << rest_bits) - 1); }

HOST_DEVICE uint64_t packed_bin(uint64_t count, uint64_t rest_sum) { return (count << rest_sum_bits) | rest_sum; }

HOST_DEVICE uint32_t count_of(uint64_t packed) { return static_cast<uint32_t>(packed >> rest_sum_bits); }

HOST_DEVICE int exponent_of(int bin) { return bin >> mantissa_bits; }

// The mean score of a bin that is not empty, over the power of two of `unit`, the exponent of another bin. What lies further above it than
// 2^60 is moved there and what lies further below than 2^-126 likewise: neither is told apart from a sure or an impossible row.
HOST_DEVICE float mean_of(int bin, uint64_t packed, int unit) {
    constexpr float step = 1.0f / (1 << rest_bits);
    const float rest = static_cast<float>(packed & ((uint64_t(1) << rest_sum_bits) - 1)) / static_cast<float>(count_of(packed));
    const float mantissa = 1 + (static_cast<float>(bin % bins_of_exponent) + (rest + 0.5f) * step) / bins_of_exponent;
    const int power = exponent_of(bin) - unit;
    return mantissa * power_of_two(power < -126 ? -126 : power > 60 ? 60 : power);
}

// ---- budget

// Follows the unevenness of the scores g = s / sum s, tau = sqrt(n sum g^2) (the paper's equation, simplified), as a running mean. The
// scores may be in any unit. Without a score tau_now is NaN, and then, as below 1, tau stays.
HOST_DEVICE float followed_tau(float tau, double rows, double sum, double sum_of_squares, double momentum) {
    const double now = sqrt(rows * sum_of_squares) / sum;
    return now > 1 ? static_cast<float>(tau + momentum * (now - tau)) : tau;
}

// b, a whole number: how many of `rows` rows are to be kept. The margin to the room is four standard deviations of the number that is, at
// most. A tau that is NaN gives the least.
HOST_DEVICE int64_t budget_of(const Rule& rule, double rows, double tau) {
    const double by_tau = rule.budget == Budget::ess ? rows / (tau * tau) : rows / tau;
    const double wanted = rule.budget == Budget::fixed ? rule.fraction * rows : by_tau;
    const double clamped = fmin(fmax(wanted, rule.floor * rows), rule.cap * rows);
    const double room = static_cast<double>(rule.room);
    return static_cast<int64_t>(fmax(fmin(floor(clamped), floor(room - 4 * sqrt(room))), 0.0));
}

// ---- the constant c of the draw

// How rows are drawn: with probability 1 - exp(-t) or min(1, t), t = c * score / unit, or with probability c each (uniform). An infinite c
// keeps every row that has a score.
struct Draw {
    float c, per_unit;
};

constexpr float nearly = 1e-6f;  // of b, how near the expected count comes to b
constexpr int max_rounds = 64;   // rounds of Newton; a dozen is the most that was seen

// One bin's part of the expected count and of its derivative with respect to c.
template <typename Sum>
HOST_DEVICE void add_expected(Law law, float c, float count, float mean, Sum& expected, Sum& slope) {
    const float t = c * mean;
    if (law == Law::linear) {
        expected += count * fminf(t, 1.0f);
        slope += t < 1 ? count * mean : 0.0f;
    } else {
        expected += count * -expm1f(-t);
        slope += count * mean * expf(-t);
    }
}

// c, in the unit of the means, at which the expected count is `budget`, where budget + rest rows have a score and rest is at least 1.
// `expected(c, count, slope)` gives the count and its derivative; the exponent of the b-th largest score is the unit.
//
// Newton from the left: the count is concave in c, so no step goes too far. For the exponential law the logarithm of the expected number
// left out is solved instead, which is convex: its steps are longer and none goes too far either. Where c starts, 1 / (2 (rest + 1)), is
// below the solution: the b - 1 largest add at most b - 1 to the count, the others, each below 2 units, the 1 that is missing.
template <typename Expected>
HOST_DEVICE float solve(Law law, float budget, float rest, const Expected& expected) {
    float c = 0;
    for (int round = 0; round < max_rounds; ++round) {
        float count, slope;
        expected(c, count, slope);
        const float missing = budget - count;
        if (!(missing > nearly * budget && slope > 0)) break;
        c += law == Law::linear ? missing / slope : log1pf(missing / rest) * ((rest + missing) / slope);
        if (round == 0) c = fmaxf(c, 0.5f / (rest + 1));
    }
    return c;
}

// c turned from the unit of the exponent `unit` into a draw. The largest unit's reciprocal is no normal float: half of c in place of it.
HOST_DEVICE Draw draw_of(float c, int unit) { return unit > 253 ? Draw{c / 2, power_of_two(exponent_bias - 253)} : Draw{c, power_of_two(exponent_bias - unit)}; }

HOST_DEVICE float probability(Law law, const Draw& draw, float score) {
    if (law == Law::uniform) return score >= 0 ? draw.c : 0.0f;
    if (!(score > 0)) return 0;
    if (draw.c > largest_float) return 1;
    const float t = draw.c * (score * draw.per_unit);
    return law == Law::linear ? fminf(t, 1.0f) : -expm1f(-t);
}

// pi^-alpha. Noise comes in steps of 2^-24, and the first of them is 0: nothing with a score is kept more rarely than that.
HOST_DEVICE float weight_of(float probability, float alpha) {
    if (alpha == 0) return 1;
    const float pi = fmaxf(probability, 1.0f / (1 << 24));
    return alpha == 1 ? 1 / pi : powf(pi, -alpha);
}

}  // namespace samplemining
