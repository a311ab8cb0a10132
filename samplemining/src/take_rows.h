// How tensors are handed over whose rows are to be gathered.
#pragma once

#include <cstdint>

namespace samplemining {

constexpr int max_tensors = 8;
constexpr int64_t max_row_bytes = 1 << 20;

// One tensor: from and to contiguous rows of `bytes` bytes each, a multiple of 4.
struct Gather {
    const void* from;
    void* to;
    int bytes;
};

struct Gathers {
    Gather each[max_tensors];
    int count;
};

}  // namespace samplemining
