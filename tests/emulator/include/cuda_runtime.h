// CUDA for a machine without a GPU, as far as this project's kernels need it: a block's threads are threads of the system, which meet at
// barriers; blocks run one after another. Slow, but each lane does what it does on a GPU, at memory that it may touch or not.
#pragma once

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;

struct alignas(8) float2 {
    float x, y;
};

namespace emulator {

constexpr int LANES = 32;

struct Index {
    unsigned x;
};

// What the lanes of a warp tell each other.
struct Warp {
    std::barrier<> barrier{LANES};
    uint64_t told[LANES][3];
};

inline thread_local Index thread, block;
inline thread_local Warp* warp;
inline Index blocks;
inline std::barrier<>* all_threads;
inline unsigned char* memory;  // the block's, shared

inline int lane() { return thread.x % LANES; }

// Tells the other lanes `value` and calls use(values of all lanes) once they have told theirs.
template <typename Value, typename Use>
inline auto exchange(const Value& value, const Use& use) {
    static_assert(sizeof(Value) <= sizeof(warp->told[0]));
    std::memcpy(warp->told[lane()], &value, sizeof(Value));
    warp->barrier.arrive_and_wait();
    const auto of_lane = [](int lane) {
        Value told;
        std::memcpy(&told, warp->told[lane], sizeof(Value));
        return told;
    };
    const auto result = use(of_lane);
    warp->barrier.arrive_and_wait();
    return result;
}

}  // namespace emulator

#define threadIdx emulator::thread
#define blockIdx emulator::block
#define gridDim emulator::blocks

inline void __syncthreads() { emulator::all_threads->arrive_and_wait(); }
inline void __syncwarp() { emulator::warp->barrier.arrive_and_wait(); }

template <typename Value>
inline Value __shfl_sync(unsigned, Value value, int lane) {
    return emulator::exchange(value, [=](const auto& of_lane) { return of_lane(lane); });
}
template <typename Value>
inline Value __shfl_up_sync(unsigned, Value value, int step) {
    const int lane = emulator::lane();
    return emulator::exchange(value, [=](const auto& of_lane) { return of_lane(lane >= step ? lane - step : lane); });
}
template <typename Value>
inline Value __shfl_down_sync(unsigned, Value value, int step) {
    const int lane = emulator::lane();
    return emulator::exchange(value, [=](const auto& of_lane) { return of_lane(lane + step < emulator::LANES ? lane + step : lane); });
}
template <typename Value>
inline Value __shfl_xor_sync(unsigned, Value value, int step) {
    const int lane = emulator::lane();
    return emulator::exchange(value, [=](const auto& of_lane) { return of_lane(lane ^ step); });
}
inline uint32_t __ballot_sync(unsigned, bool value) {
    return emulator::exchange(value, [](const auto& of_lane) {
        uint32_t mask = 0;
        for (int lane = 0; lane < emulator::LANES; ++lane) mask |= uint32_t{of_lane(lane)} << lane;
        return mask;
    });
}
inline int __popc(uint32_t mask) { return __builtin_popcount(mask); }

template <typename Value>
inline Value atomicAdd(Value* to, Value value) {
    return std::atomic_ref<Value>(*to).fetch_add(value);
}

using std::max;
using std::min;
