// What the operators demand of their arguments, the same for CPU and CUDA; anything else is a Python error that names the argument.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <limits>
#include <optional>

#include "raysampling_math.h"

namespace raysampling {

// edges decide on the dtype and the device of the others.
inline void check_edges(const char* name, const at::Tensor& edges) {
    const bool known = edges.scalar_type() == at::kFloat || (edges.scalar_type() == at::kDouble && edges.is_cpu());
    TORCH_CHECK_TYPE(known, name, " must be float32 or, on the CPU, float64, not ", edges.scalar_type(), " on ", edges.device());
    const bool shaped = edges.dim() == 2 && edges.size(1) >= 2 && edges.size(1) <= most_intervals + 1;
    TORCH_CHECK_VALUE(shaped, name, " must be of shape [N, S + 1] with S from 1 to ", most_intervals, ", not ", edges.sizes());
    const bool few = edges.size(0) <= std::numeric_limits<int32_t>::max();
    TORCH_CHECK_VALUE(few, name, " must have at most 2^31 - 1 rays, not ", edges.size(0));
}

inline void check_device(const char* name, const at::Tensor& tensor, const at::Tensor& edges) {
    TORCH_CHECK_VALUE(tensor.device() == edges.device(), name, " is on ", tensor.device(), " but edges is on ", edges.device());
}

inline void check_like_edges(const char* name, const at::Tensor& tensor, const at::Tensor& edges, at::IntArrayRef shape) {
    TORCH_CHECK_TYPE(tensor.scalar_type() == edges.scalar_type(), name, " must be ", edges.scalar_type(), " as edges, not ",
                     tensor.scalar_type());
    TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must be of shape ", shape, ", not ", tensor.sizes());
    check_device(name, tensor, edges);
}

inline void check_rays(const at::Tensor& near, const at::Tensor& far, const at::Tensor& count, const at::Tensor& edges) {
    check_like_edges("near", near, edges, {edges.size(0)});
    check_like_edges("far", far, edges, {edges.size(0)});
    TORCH_CHECK_TYPE(count.scalar_type() == at::kInt, "count must be int32, not ", count.scalar_type());
    TORCH_CHECK_VALUE(count.dim() == 1 && count.size(0) == 1, "count must be of shape [1], not ", count.sizes());
    check_device("count", count, edges);
}

inline void check_logit(const at::Tensor& logit, const at::Tensor& edges) {
    const bool half = logit.scalar_type() == at::kHalf && edges.scalar_type() == at::kFloat;
    TORCH_CHECK_TYPE(half || logit.scalar_type() == edges.scalar_type(), "logit must be ", edges.scalar_type(),
                     " as edges or, for float32 edges, float16, not ", logit.scalar_type());
    const int64_t rays = edges.size(0), intervals = edges.size(1) - 1;
    TORCH_CHECK_VALUE(logit.numel() == rays * intervals, "logit must have ", rays, " x ", intervals, " values, not the shape ",
                      logit.sizes());
    check_device("logit", logit, edges);
}

inline void check_placing(const at::Tensor& edges, const at::Tensor& origins, const at::Tensor& directions, const at::Tensor& near,
                          const at::Tensor& far, const at::Tensor& count) {
    check_edges("edges", edges);
    check_like_edges("origins", origins, edges, {edges.size(0), 3});
    check_like_edges("directions", directions, edges, {edges.size(0), 3});
    check_rays(near, far, count, edges);
}

inline void check_resampling(const at::Tensor& edges, const at::Tensor& logit, const at::Tensor& near, const at::Tensor& far,
                             const at::Tensor& count, const at::Tensor& noise, int64_t intervals, double padding,
                             const std::optional<at::Tensor>& anneal) {
    check_edges("edges", edges);
    check_logit(logit, edges);
    check_rays(near, far, count, edges);
    const bool few = intervals >= 1 && intervals <= most_intervals;
    TORCH_CHECK_VALUE(few, "intervals must be 1 to ", most_intervals, ", not ", intervals);
    if (noise.dim() == 2) check_like_edges("noise", noise, edges, {edges.size(0), intervals + 1});
    else check_like_edges("noise", noise, edges, {edges.size(0)});
    TORCH_CHECK_VALUE(padding >= 0 && std::isfinite(padding), "padding must be at least 0 and finite, not ", padding);
    if (anneal) check_like_edges("anneal", *anneal, edges, {1});
}

inline void check_interlevel(const at::Tensor& edges_ref, const at::Tensor& weights_ref, const at::Tensor& edges, const at::Tensor& logit,
                             const at::Tensor& near, const at::Tensor& far, const at::Tensor& count) {
    check_edges("edges", edges);
    check_edges("edges_ref", edges_ref);
    check_like_edges("edges_ref", edges_ref, edges, {edges.size(0), edges_ref.size(1)});
    check_like_edges("weights_ref", weights_ref, edges, {edges.size(0), edges_ref.size(1) - 1});
    check_logit(logit, edges);
    check_rays(near, far, count, edges);
}

}  // namespace raysampling
