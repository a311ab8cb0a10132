// Adam (Kingma and Ba 2015, algorithm 1) with a loss scale, shared by the CPU loops and the CUDA kernels: what happens to one element,
// and to the few numbers that all elements have in common.
#pragma once

#include <math.h>

#include <cstdint>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace fusedadam {

constexpr float least_scale = 1, greatest_scale = 16777216;  // 2^24
constexpr int64_t greatest_interval = 16777216;              // counts are exact in float32 up to it

// The control tensor: 8 float32 numbers that live on the device of the parameters. The first three are the state, what follows holds
// only within a step.
struct Control {
    float step;               // steps that were applied
    float scale;              // the loss scale of the gradients that the next step will see
    float good_steps;         // steps without an overflow since the scale changed
    float applies;            // 1 where the dense gradients of this step are finite, else 0
    float first_correction;   // 1 / (1 - beta1^step)
    float second_correction;  // 1 / sqrt(1 - beta2^step)
    float overflow;           // 1 after a gradient that is not finite; 0 between steps
    uint32_t ticket;          // blocks of a kernel that are done; 0 between kernels, whose bits are those of the float32 number 0
};
static_assert(sizeof(Control) == 32, "the control tensor holds 8 numbers");

struct Settings {
    double beta1, beta2;
    float eps;
    float growth_interval;  // 0: the scale never grows
};

// A parameter and what belongs to it. Half: __half or at::Half; `copy` is null where there is none.
template <typename Half>
struct Leaf {
    float *parameter, *gradient, *first, *second;
    Half* copy;
    const float* rate;
    int64_t count;
    bool sparse;
};

// The numbers that every element of a parameter needs.
struct Update {
    float inverse_scale, rate, second_correction, eps, first_weight, beta2, second_weight;

    HOST_DEVICE Update(const Control& control, const Settings& settings, float learning_rate)
        : inverse_scale(1 / control.scale), rate(learning_rate * control.first_correction), second_correction(control.second_correction),
          eps(settings.eps), first_weight(static_cast<float>(1 - settings.beta1)), beta2(static_cast<float>(settings.beta2)),
          second_weight(static_cast<float>(1 - settings.beta2)) {}
};

HOST_DEVICE bool finite(float value) { return fabsf(value) <= 3.40282347e38f; }  // false for NaN

HOST_DEVICE void update(const Update& by, float gradient, float& parameter, float& first, float& second) {
    const float g = gradient * by.inverse_scale;
    first += by.first_weight * (g - first);
    second = by.beta2 * second + by.second_weight * g * g;
    parameter -= by.rate * first / (sqrtf(second) * by.second_correction + by.eps);
}

// After the dense gradients were looked at: whether this step counts, and its bias corrections (in double: 1 - 0.999 has few digits).
HOST_DEVICE void begin_step(Control& control, const Settings& settings, bool overflow) {
    control.applies = overflow ? 0.f : 1.f;
    if (overflow) return;
    control.step += 1;
    control.first_correction = static_cast<float>(1 / (1 - pow(settings.beta1, static_cast<double>(control.step))));
    control.second_correction = static_cast<float>(1 / sqrt(1 - pow(settings.beta2, static_cast<double>(control.step))));
}

// After all gradients were looked at: the next loss scale.
HOST_DEVICE void end_step(Control& control, const Settings& settings, bool overflow) {
    control.good_steps = overflow ? 0.f : control.good_steps + 1;
    if (overflow) control.scale = fmaxf(control.scale / 2, least_scale);
    if (settings.growth_interval == 0 || control.good_steps < settings.growth_interval) return;
    control.scale = fminf(control.scale * 2, greatest_scale);
    control.good_steps = 0;
}

}  // namespace fusedadam
