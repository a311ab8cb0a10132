// Registration of the operators and their CPU form: one ray after another, rays shared out among the threads. Sums over rays are added up
// in a fixed order, so that results repeat bit for bit, whatever the number of threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "raysampling_checks.h"

namespace raysampling {
namespace {

using at::Tensor;

constexpr int64_t rays_a_task = 64;

// Calls work with null pointers of the types of the logits and of all else.
template <typename Work>
void for_dtypes(const Tensor& logit, const Work& work) {
    if (logit.scalar_type() == at::kDouble) work(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    else if (logit.scalar_type() == at::kHalf) work(static_cast<at::Half*>(nullptr), static_cast<float*>(nullptr));
    else work(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
}

template <typename Pointer>
using Pointed = std::remove_pointer_t<Pointer>;

template <typename Real>
Rays<Real> rays_of(const Tensor& near, const Tensor& far, const Tensor& count) {
    return {near.const_data_ptr<Real>(), far.const_data_ptr<Real>(), count.const_data_ptr<int32_t>(), near.size(0)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> place_samples(const Tensor& edges_, const Tensor& origins_, const Tensor& directions_,
                                                                 const Tensor& near_, const Tensor& far_, const Tensor& count,
                                                                 bool contract, bool last_open) {
    check_placing(edges_, origins_, directions_, near_, far_, count);
    const Tensor edges = edges_.contiguous(), origins = origins_.contiguous(), directions = directions_.contiguous(),
                 near = near_.contiguous(), far = far_.contiguous();
    const int64_t rays = edges.size(0), intervals = edges.size(1) - 1;
    const Tensor positions = at::empty({rays * intervals, 3}, edges.options()), ahead = at::empty({rays * intervals, 3}, edges.options()),
                 t = at::empty({rays * intervals}, edges.options()), dt = at::empty({rays * intervals}, edges.options()),
                 ray_index = at::empty({rays * intervals}, edges.options().dtype(at::kInt));
    for_dtypes(edges, [&](auto*, auto* type) {
        using Real = Pointed<decltype(type)>;
        const Placing<Real> placing{rays_of<Real>(near, far, count),
                                    edges.const_data_ptr<Real>(),
                                    origins.const_data_ptr<Real>(),
                                    directions.const_data_ptr<Real>(),
                                    static_cast<int>(intervals),
                                    contract,
                                    last_open};
        Real *const position = positions.mutable_data_ptr<Real>(), *const direction = ahead.mutable_data_ptr<Real>();
        Real *const distance = t.mutable_data_ptr<Real>(), *const length = dt.mutable_data_ptr<Real>();
        int32_t* const index = ray_index.mutable_data_ptr<int32_t>();
        at::parallel_for(0, rays, rays_a_task, [&](int64_t begin, int64_t end) {
            for (int64_t ray = begin; ray < end; ++ray) {
                const Spacing<Real> spacing = spacing_of(placing.rays, placing.rays.used(), ray);
                for (int k = 0; k < placing.intervals; ++k) {
                    const int64_t row = ray * intervals + k;
                    const Sample<Real> sample = sample_at(placing, spacing, ray, k);
                    distance[row] = sample.t, length[row] = sample.dt;
                    index[row] = spacing.empty ? -1 : static_cast<int32_t>(ray);
                    for (int i = 0; i < 3; ++i) {
                        position[3 * row + i] = sample.position[i];
                        direction[3 * row + i] = spacing.empty ? Real(0) : placing.directions[3 * ray + i];
                    }
                }
            }
        });
    });
    return {positions, ahead, t, dt, ray_index};
}

// One ray; cumulative is room for intervals + 1 numbers.
template <typename Logit, typename Real>
void resample_ray(const Resampling<Logit, Real>& resampling, int64_t ray, Real* cumulative, Real* new_edges, Real* weights) {
    const int intervals = resampling.intervals;
    const Spacing<Real> spacing = spacing_of(resampling.rays, resampling.rays.used(), ray);
    const Real *edges = resampling.edges + ray * (intervals + 1), exponent = exponent_of(resampling.anneal);
    const Logit* logit = resampling.logit + ray * intervals;
    Real depth = 0;
    bool seen = false;
    cumulative[0] = 0;
    for (int k = 0; k < intervals; ++k) {
        const Real tau = optical_depth(static_cast<Real>(logit[k]), length_of(spacing, edges[k], edges[k + 1]));
        weights[k] = weight_of(depth, tau);
        cumulative[k + 1] = cumulative[k] + mass_of(weights[k], exponent, resampling.padding);
        depth += tau;
        seen = seen || weights[k] > 0;
    }
    const bool even = !seen || !usable(cumulative[intervals]);
    for (int j = 0; j <= resampling.wanted; ++j) {
        new_edges[j] = edge_at(quantile_of(resampling, ray, j), edges, cumulative, intervals, even);
        if (j > 0 && new_edges[j] < new_edges[j - 1]) new_edges[j] = new_edges[j - 1];
    }
}

std::tuple<Tensor, Tensor> resample(const Tensor& edges_, const Tensor& logit_, const Tensor& near_, const Tensor& far_,
                                    const Tensor& count, const Tensor& noise_, int64_t intervals, double padding,
                                    const std::optional<Tensor>& anneal) {
    check_resampling(edges_, logit_, near_, far_, count, noise_, intervals, padding, anneal);
    const Tensor edges = edges_.contiguous(), logit = logit_.contiguous(), near = near_.contiguous(), far = far_.contiguous(),
                 noise = noise_.contiguous();
    const int64_t rays = edges.size(0), given = edges.size(1) - 1;
    const Tensor new_edges = at::empty({rays, intervals + 1}, edges.options()), weights = at::empty({rays, given}, edges.options());
    for_dtypes(logit, [&](auto* logits, auto* type) {
        using Logit = Pointed<decltype(logits)>;
        using Real = Pointed<decltype(type)>;
        const Resampling<Logit, Real> resampling{rays_of<Real>(near, far, count),
                                                 edges.const_data_ptr<Real>(),
                                                 logit.const_data_ptr<Logit>(),
                                                 noise.const_data_ptr<Real>(),
                                                 anneal ? anneal->const_data_ptr<Real>() : nullptr,
                                                 static_cast<int>(given),
                                                 static_cast<int>(intervals),
                                                 noise.dim() == 2,
                                                 static_cast<Real>(padding)};
        Real *const drawn = new_edges.mutable_data_ptr<Real>(), *const weight = weights.mutable_data_ptr<Real>();
        at::parallel_for(0, rays, rays_a_task, [&](int64_t begin, int64_t end) {
            std::vector<Real> cumulative(given + 1);
            for (int64_t ray = begin; ray < end; ++ray)
                resample_ray(resampling, ray, cumulative.data(), drawn + ray * (intervals + 1), weight + ray * given);
        });
    });
    return {new_edges, weights};
}

// One ray; depth is room for intervals + 1 numbers, pulls for intervals_ref. Returns what the ray adds to the loss.
template <typename Logit, typename Real>
double interlevel_ray(const Interlevel<Logit, Real>& interlevel, int64_t ray, int64_t used, Real* depth, Real* pulls, Real* gradient) {
    const int intervals = interlevel.intervals, intervals_ref = interlevel.intervals_ref;
    const Spacing<Real> spacing = spacing_of(interlevel.rays, used, ray);
    if (spacing.empty) {
        std::fill_n(gradient, intervals, Real(0));
        return 0;
    }
    const Real *edges = interlevel.edges + ray * (intervals + 1), *edges_ref = interlevel.edges_ref + ray * (intervals_ref + 1);
    const Real *weights_ref = interlevel.weights_ref + ray * intervals_ref, share = Real(1) / static_cast<Real>(used);
    const auto logit = [&](int k) { return static_cast<Real>(interlevel.logit[ray * intervals + k]); };
    depth[0] = 0;
    for (int k = 0; k < intervals; ++k) depth[k + 1] = depth[k] + optical_depth(logit(k), length_of(spacing, edges[k], edges[k + 1]));
    double loss = 0;
    for (int i = 0; i < intervals_ref; ++i) {
        const Real bound = weight_between(depth, overlap(edges, intervals, edges_ref[i], edges_ref[i + 1]));
        const Excess<Real> excess = excess_of(weights_ref[i], bound, share);
        loss += excess.loss, pulls[i] = excess.pull;
    }
    Real V = 0;
    for (int k = intervals - 1; k >= 0; --k) {
        const Real length = length_of(spacing, edges[k], edges[k + 1]), tau = optical_depth(logit(k), length);
        const Real g = weight_gradient(pulls, overlap(edges_ref, intervals_ref, edges[k], edges[k + 1]));
        gradient[k] = logit_gradient(g, V, depth[k + 1], length, logit(k));
        V = std::exp(-tau) * V - std::expm1(-tau) * g;
    }
    return loss;
}

std::tuple<Tensor, Tensor> interlevel_loss(const Tensor& edges_ref_, const Tensor& weights_ref_, const Tensor& edges_,
                                           const Tensor& logit_, const Tensor& near_, const Tensor& far_, const Tensor& count) {
    check_interlevel(edges_ref_, weights_ref_, edges_, logit_, near_, far_, count);
    const Tensor edges_ref = edges_ref_.contiguous(), weights_ref = weights_ref_.contiguous(), edges = edges_.contiguous(),
                 logit = logit_.contiguous(), near = near_.contiguous(), far = far_.contiguous();
    const int64_t rays = edges.size(0), intervals = edges.size(1) - 1, intervals_ref = edges_ref.size(1) - 1;
    const Tensor gradient = at::empty(logit.sizes(), edges.options()), loss = at::empty({1}, edges.options());
    for_dtypes(logit, [&](auto* logits, auto* type) {
        using Logit = Pointed<decltype(logits)>;
        using Real = Pointed<decltype(type)>;
        const Interlevel<Logit, Real> interlevel{rays_of<Real>(near, far, count),
                                                 edges_ref.const_data_ptr<Real>(),
                                                 weights_ref.const_data_ptr<Real>(),
                                                 edges.const_data_ptr<Real>(),
                                                 logit.const_data_ptr<Logit>(),
                                                 static_cast<int>(intervals_ref),
                                                 static_cast<int>(intervals)};
        Real* const at_logit = gradient.mutable_data_ptr<Real>();
        const int64_t used = interlevel.rays.used();
        std::vector<double> losses(rays);
        at::parallel_for(0, rays, rays_a_task, [&](int64_t begin, int64_t end) {
            std::vector<Real> depth(intervals + 1), pulls(intervals_ref);
            for (int64_t ray = begin; ray < end; ++ray)
                losses[ray] = interlevel_ray(interlevel, ray, used, depth.data(), pulls.data(), at_logit + ray * intervals);
        });
        double total = 0;
        for (const double of_ray : losses) total += of_ray;
        *loss.mutable_data_ptr<Real>() = static_cast<Real>(total);
    });
    return {gradient, loss};
}

}  // namespace

TORCH_LIBRARY(raysampling, library) {
    library.def(
        "place_samples(Tensor edges, Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor count, bool contract, "
        "bool last_open) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
    library.def(
        "resample(Tensor edges, Tensor logit, Tensor near, Tensor far, Tensor count, Tensor noise, int intervals, float padding, "
        "Tensor? anneal) -> (Tensor, Tensor)");
    library.def(
        "interlevel_loss(Tensor edges_ref, Tensor weights_ref, Tensor edges, Tensor logit, Tensor near, Tensor far, Tensor count) "
        "-> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(raysampling, CPU, library) {
    library.impl("place_samples", place_samples);
    library.impl("resample", resample);
    library.impl("interlevel_loss", interlevel_loss);
}

}  // namespace raysampling
