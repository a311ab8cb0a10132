// Launches that run on this machine; takes the place of fusedfield/src/launch.cuh.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <thread>
#include <vector>

#include "batch.cuh"

namespace fusedfield {

constexpr int PROCESSORS = 1, RESIDENT = 2;  // blocks that one holds at once: few, so that each comes round again

template <class Block>
inline Block& shared_block() {
    return *reinterpret_cast<Block*>(emulator::memory);
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), size_t shared, Work work, cudaStream_t, const Arguments&... arguments) {
    if (work.rows <= 0) return cudaSuccess;
    emulator::blocks.x = blocks_for(work, PROCESSORS, RESIDENT);
    for (int block = 0; block < emulator::blocks.x; ++block) {
        const std::unique_ptr<unsigned char, void (*)(void*)> memory(static_cast<unsigned char*>(std::aligned_alloc(128, (shared + 127) / 128 * 128)), std::free);
        std::memset(memory.get(), 0xff, shared);  // NaN: what is read before it was written shows
        emulator::memory = memory.get();
        std::barrier<> all_threads(THREADS);
        emulator::all_threads = &all_threads;
        std::vector<emulator::Warp> warps(WARPS);
        std::vector<std::jthread> threads;
        for (int thread = 0; thread < THREADS; ++thread)
            threads.emplace_back([&, thread] {
                emulator::thread.x = thread, emulator::block.x = block, emulator::warp = &warps[thread / WARP];
                kernel(arguments...);
            });
    }
    return cudaSuccess;
}

}  // namespace fusedfield
