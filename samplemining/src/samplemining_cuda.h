// Launchers of the CUDA kernels: raw device pointers, sizes and the stream to run on; each returns the error of its own launches.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "samplemining_math.h"
#include "take_rows.h"

namespace samplemining {

constexpr int block_threads = 512;
constexpr int block_rows = 2048;  // that a block scores, counts and writes; its counts and sums of 8 bits fit 32 bits together
constexpr int word_rows = 32;     // a bit each
constexpr int block_words = block_rows / word_rows;

// Also of no rows there is one block, which writes the empty result.
inline int64_t blocks_of(int64_t rows) { return rows > 0 ? (rows + block_rows - 1) / block_rows : 1; }

// What a draw reads. delta begins on a boundary of 16 bytes where C is a multiple of 4.
struct Rows {
    const float* delta;  // [B, C]
    const float* noise;  // [B]
    const int32_t* count;
    int64_t rows;  // B
    int columns;   // C
};

// Memory for what the kernels tell each other.
struct Scratch {
    unsigned long long* histogram;  // [bins]
    float* scores;                  // [B]
    uint32_t* keep;                 // [blocks, block_words]
    int32_t* kept;                  // [blocks]
    Draw* draw;
};

struct Chosen {
    int64_t* index;   // [room]
    float* gradient;  // [room, C]
    int32_t* counts;  // [2]
};

cudaError_t launch_thin(const Rows& rows, const Rule& rule, float* tau, const Scratch& scratch, const Chosen& chosen, cudaStream_t stream);

cudaError_t launch_take(const Gathers& gathers, const int64_t* index, int64_t rows, int64_t held, cudaStream_t stream);

}  // namespace samplemining
