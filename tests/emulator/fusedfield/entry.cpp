// The launchers of fusedfield by plain C names, for tables of halves.
#include "fusedfield_cuda.h"

using namespace fusedfield;
using gridencoder::Grid;

namespace {

NGPWeights ngp_weights(const float* const* matrices, float start) {
    return {{matrices[0], matrices[1], matrices[2]}, {matrices[3], matrices[4], matrices[5]}, start};
}

}  // namespace

extern "C" {

void ngp_at(const float* positions, const float* directions, const __half* table, const int32_t* offsets, const int32_t* resolutions, int64_t entries, int levels,
            float bound, const float* const* matrices, float start, int rows, const int32_t* count, __half* raw, __half* logit) {
    const Positions<__half> given{positions, table, Grid{offsets, resolutions, entries, levels, {}}, bound};
    launch_ngp(given, directions, ngp_weights(matrices, start), {rows, count}, raw, nullptr);
    launch_ngp_density(given, ngp_weights(matrices, start), {rows, count}, logit, nullptr);
}

void ngp(const __half* encoding, const float* directions, const float* const* matrices, float start, int rows, const int32_t* count, __half* raw) {
    launch_ngp(Encoding{encoding, 32}, directions, ngp_weights(matrices, start), {rows, count}, raw, nullptr);
}

void ngp_backward(const __half* encoding, const float* directions, const float* const* matrices, int rows, const int32_t* count, const float* gradient,
                  const float* scale, __half* of_encoding, __half* of_view, float* of_weights) {
    launch_ngp_backward({encoding, 32}, directions, ngp_weights(matrices, 0), {rows, count}, {gradient, scale}, of_encoding, of_view, of_weights, nullptr);
}

void ngp_render(const float* origins, const float* directions, const float* near, const float* far, const uint8_t* bitfield, const __half* table, const int32_t* offsets,
                const int32_t* resolutions, int64_t entries, int levels, float bound, const float* const* matrices, float start, int64_t cascades, int64_t grid_size,
                float dt_gamma, int64_t max_steps, float T_thresh, int rays, float* features, float* opacity, float* depth) {
    const Positions<__half> given{nullptr, table, Grid{offsets, resolutions, entries, levels, {}}, bound};
    const raymarching::March march = raymarching::make_march(bound, cascades, grid_size, false, dt_gamma, max_steps);
    int next = 0;
    launch_ngp_render(given, ngp_weights(matrices, start), march, {origins, directions, near, far, bitfield, T_thresh, rays, features, opacity, depth}, &next, nullptr);
}

void proposal_at(const float* positions, const __half* table, const int32_t* offsets, const int32_t* resolutions, int64_t entries, int levels, float bound,
                 const float* const* matrices, int rows, const int32_t* count, __half* logit) {
    const Positions<__half> given{positions, table, Grid{offsets, resolutions, entries, levels, {}}, bound};
    launch_proposal(given, {{matrices[0], matrices[1]}, 2 * levels}, {rows, count}, logit, nullptr);
}

void proposal(const __half* encoding, int columns, const float* const* matrices, int rows, const int32_t* count, __half* logit) {
    launch_proposal(Encoding{encoding, columns}, {{matrices[0], matrices[1]}, columns}, {rows, count}, logit, nullptr);
}

void proposal_backward(const __half* encoding, int columns, const float* const* matrices, int rows, const int32_t* count, const float* gradient, const float* scale,
                       __half* of_encoding, float* of_weights) {
    launch_proposal_backward({encoding, columns}, {{matrices[0], matrices[1]}, columns}, {rows, count}, {gradient, scale}, of_encoding, of_weights, nullptr);
}

void merf_at(const float* positions, const __half* const* tables, const int32_t* const* offsets, const int32_t* const* resolutions, const int64_t* entries, int levels,
             float bound, const float* const* matrices, float density_limit, float feature_limit, int rows, const int32_t* count, __half* raw, __half* logit) {
    MerfPositions<__half> given{positions, {}, {}, bound};
    for (int g = 0; g < MERF_GRIDS; ++g) given.tables[g] = tables[g], given.grids[g] = {offsets[g], resolutions[g], entries[g], levels, {}};
    const MerfWeights weights{matrices[0], matrices[1], density_limit, feature_limit};
    launch_merf(given, weights, {rows, count}, raw, nullptr);
    launch_merf_density(given, weights, {rows, count}, logit, nullptr);
}

void merf(const __half* const* encodings, const float* const* matrices, float density_limit, float feature_limit, int rows, const int32_t* count, __half* raw) {
    launch_merf(MerfEncodings{{encodings[0], encodings[1], encodings[2], encodings[3]}}, {matrices[0], matrices[1], density_limit, feature_limit}, {rows, count}, raw, nullptr);
}

void merf_backward(const __half* const* encodings, const float* const* matrices, float density_limit, float feature_limit, int rows, const int32_t* count,
                   const float* gradient, const float* scale, __half* of_encoding, float* of_weights) {
    launch_merf_backward({{encodings[0], encodings[1], encodings[2], encodings[3]}}, {matrices[0], matrices[1], density_limit, feature_limit}, {rows, count},
                         {gradient, scale}, of_encoding, of_weights, nullptr);
}
}
