// Registration of the operator and its CPU form.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <atomic>

#include "fusedadam_leaves.h"

namespace fusedadam {
namespace {

constexpr int64_t grain = 8192;  // elements worth waking another thread for

bool all_finite(const Leaf<at::Half>& leaf) {
    std::atomic<bool> good = true;
    at::parallel_for(0, leaf.count, grain, [&](int64_t begin, int64_t end) {
        int64_t bad = 0;
        for (int64_t i = begin; i < end; ++i) bad += !finite(leaf.gradient[i]);
        if (bad) good = false;
    });
    return good;
}

void update_dense(const Leaf<at::Half>& leaf, const Update by) {
    at::parallel_for(0, leaf.count, grain, [&](int64_t begin, int64_t end) {
        float* __restrict__ parameter = leaf.parameter;
        float* __restrict__ first = leaf.first;
        float* __restrict__ second = leaf.second;
        const float* __restrict__ gradient = leaf.gradient;
        for (int64_t i = begin; i < end; ++i) update(by, gradient[i], parameter[i], first[i], second[i]);
        if (!leaf.copy) return;
        for (int64_t i = begin; i < end; ++i) leaf.copy[i] = parameter[i];
    });
}

// Returns whether the gradient was finite; without `applies` it is only made zero.
bool update_sparse(const Leaf<at::Half>& leaf, const Update by, bool applies) {
    std::atomic<bool> good = true;
    at::parallel_for(0, leaf.count, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const float gradient = leaf.gradient[i];
            if (gradient == 0) continue;
            leaf.gradient[i] = 0;
            if (!finite(gradient)) good = false;
            else if (applies) {
                update(by, gradient, leaf.parameter[i], leaf.first[i], leaf.second[i]);
                if (leaf.copy) leaf.copy[i] = leaf.parameter[i];
            }
        }
    });
    return good;
}

void step_(at::TensorList parameters, at::TensorList gradients, at::TensorList first_moments, at::TensorList second_moments,
           at::TensorList copies, at::TensorList rates, c10::List<bool> sparse, const at::Tensor& control, double beta1, double beta2,
           double eps, std::optional<int64_t> growth_interval) {
    const Lists lists{parameters, gradients, first_moments, second_moments, copies, rates, sparse};
    const Settings settings = checked_settings(beta1, beta2, eps, growth_interval, control);
    check_lists(lists, control.device());
    std::vector<at::Tensor> kept;
    const auto leaves = leaves_of<at::Half>(lists, kept);
    Control& now = *control_of(control);
    bool overflow = false;
    for (const auto& leaf : leaves) overflow |= !leaf.sparse && !all_finite(leaf);
    begin_step(now, settings, overflow);
    const bool applies = !overflow;
    for (const auto& leaf : leaves) {
        const Update by(now, settings, *leaf.rate);
        if (leaf.sparse) overflow |= !update_sparse(leaf, by, applies);
        else if (applies) update_dense(leaf, by);
    }
    end_step(now, settings, overflow);
}

}  // namespace

TORCH_LIBRARY(fusedadam, library) {
    library.def(
        "step_(Tensor(a!)[] parameters, Tensor(b!)[] gradients, Tensor(c!)[] first_moments, Tensor(d!)[] second_moments, "
        "Tensor(e!)[] copies, Tensor[] rates, bool[] sparse, Tensor(f!) control, *, float beta1, float beta2, float eps, "
        "int? growth_interval) -> ()");
}

TORCH_LIBRARY_IMPL(fusedadam, CPU, library) { library.impl("step_", step_); }

}  // namespace fusedadam
