// The two instructions that the networks are made of: ldmatrix and mma.sync m16n8k16 (sm_80 and later, nothing of Hopper's own). All lanes of a warp
// take part; a lane is called (g, q), g = lane / 4 and q = lane % 4.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace fusedfield {

// The four 8 x 8 blocks whose rows start at `address`, that of lane l being row l % 8 of block l / 8.
template <bool TRANSPOSED>
__device__ __forceinline__ void load_blocks(const __half* address, uint32_t (&blocks)[4]) {
#if __CUDA_ARCH__ >= 800
    const uint32_t shared = static_cast<uint32_t>(__cvta_generic_to_shared(address));
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(blocks[0]), "=r"(blocks[1]), "=r"(blocks[2]), "=r"(blocks[3])
                     : "r"(shared)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(blocks[0]), "=r"(blocks[1]), "=r"(blocks[2]), "=r"(blocks[3])
                     : "r"(shared)
                     : "memory");
#else
    __trap();  // ops.available() keeps older GPUs away; their code has to compile, no more
#endif
}

// sums[16 x 8] += rows[16 x 16] block[16 x 8], in float. Of the rows a lane holds columns 2 q and the next of rows g and g + 8, then columns 2 q + 8 and the next
// of both; of the block rows 2 q and the next of column g in `low`, 2 q + 8 and the next in `high`; of the sums columns 2 q and the next of row g, then of g + 8.
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&rows)[4], uint32_t low, uint32_t high) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "r"(low), "r"(high));
#else
    __trap();
#endif
}

}  // namespace fusedfield
