// Launchers of the CUDA kernels: raw device pointers, sizes and the stream to run on; each returns the error of its own launch.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../../gridencoder/src/gridencoder_math.h"
#include "../../raymarching/src/march_math.h"

namespace fusedfield {

// Features of a grid: [rows, columns] half.
struct Encoding {
    const __half* features;
    int columns;
};

// Where to gather features: positions [rows, 3] in [-bound, bound]^3 and a grid of three dimensions and two features an entry. Value: float or __half.
template <typename Value>
struct Positions {
    const float* positions;
    const Value* table;
    gridencoder::Grid grid;
    float bound;
};

// The samples of a launch: `rows`, at most 2^30, are there, the first `count` of them (in device memory; null: all) are in use.
struct Batch {
    int rows;
    const int32_t* count;
};

// Matrices as torch.nn.Linear keeps them, without biases; but for the log density, to which `start` is added.
struct NGPWeights {
    const float* geometry[3];  // [64, 32], [64, 64], [16, 64]
    const float* colour[3];    // [32, 31], [32, 32], [3, 32]
    float start;
};

// A picture's rays, the occupied cells that they march through, where they stop, and what they gather: features [rays, 3], opacity and depth [rays].
struct Picture {
    const float *origins, *directions, *near, *far;
    const uint8_t* bitfield;
    float T_thresh;
    int rays;
    float *features, *opacity, *depth;
};

struct ProposalWeights {
    const float* geometry[2];  // [16, inputs], [1, 16]
    int inputs;                // at most 16
};

// The MeRF field's grid and planes, in this order: xyz, xy, yz, xz.
constexpr int MERF_GRIDS = 4;

// Their features: [rows, 32] half each.
struct MerfEncodings {
    const __half* features[MERF_GRIDS];
};

// Where to gather them: positions [rows, 3] in [-bound, bound]^3, grids of at most eight levels and four features an entry.
template <typename Value>
struct MerfPositions {
    const float* positions;
    const Value* tables[MERF_GRIDS];
    gridencoder::Grid grids[MERF_GRIDS];
    float bound;
};

// An output x becomes limit tanh(x / limit), with one limit for the density and one for the others.
struct MerfWeights {
    const float* hidden;  // [64, 32]
    const float* output;  // [8, 64]
    float density_limit, feature_limit;
};

// What to learn from: the loss's gradient at the raw outputs, [rows, outputs] float, and what it is multiplied with (null: 1).
struct Upstream {
    const float* gradient;
    const float* scale;
};

// raw [rows, 4] = (log density, colour logits); rows that are not in use get zeros.
cudaError_t launch_ngp(Encoding given, const float* directions, NGPWeights weights, Batch batch, __half* raw, cudaStream_t stream);

template <typename Value>
cudaError_t launch_ngp(Positions<Value> given, const float* directions, NGPWeights weights, Batch batch, __half* raw, cudaStream_t stream);

// Log density alone, [rows].
template <typename Value>
cudaError_t launch_ngp_density(Positions<Value> given, NGPWeights weights, Batch batch, __half* logit, cudaStream_t stream);

// All samples of a picture's rays; given.positions is not read. next: [1], zero before.
template <typename Value>
cudaError_t launch_ngp_render(Positions<Value> given, NGPWeights weights, const raymarching::March& march, const Picture& picture, int* next, cudaStream_t stream);

cudaError_t launch_proposal(Encoding given, ProposalWeights weights, Batch batch, __half* logit, cudaStream_t stream);

template <typename Value>
cudaError_t launch_proposal(Positions<Value> given, ProposalWeights weights, Batch batch, __half* logit, cudaStream_t stream);

// raw [rows, 8] = (log density, features' logits); rows that are not in use get zeros.
cudaError_t launch_merf(MerfEncodings given, MerfWeights weights, Batch batch, __half* raw, cudaStream_t stream);

template <typename Value>
cudaError_t launch_merf(MerfPositions<Value> given, MerfWeights weights, Batch batch, __half* raw, cudaStream_t stream);

// Log density alone, [rows].
template <typename Value>
cudaError_t launch_merf_density(MerfPositions<Value> given, MerfWeights weights, Batch batch, __half* logit, cudaStream_t stream);

// of_encoding [rows, columns] half and, unless null, of_view [rows, 16] half (the gradient at the spherical harmonics) are written; of_weights float, the
// matrices in the order of the weights one after the other, is added to.
cudaError_t launch_ngp_backward(Encoding given, const float* directions, NGPWeights weights, Batch batch, Upstream upstream,
                                __half* of_encoding, __half* of_view, float* of_weights, cudaStream_t stream);

// of_encoding [rows, 32] half is that of each of the four.
cudaError_t launch_merf_backward(MerfEncodings given, MerfWeights weights, Batch batch, Upstream upstream, __half* of_encoding, float* of_weights,
                                 cudaStream_t stream);

cudaError_t launch_proposal_backward(Encoding given, ProposalWeights weights, Batch batch, Upstream upstream, __half* of_encoding,
                                     float* of_weights, cudaStream_t stream);

}  // namespace fusedfield
