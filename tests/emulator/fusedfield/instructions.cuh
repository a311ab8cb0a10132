// ldmatrix and mma.sync m16n8k16 as the PTX manual says which lane holds what; takes the place of fusedfield/src/instructions.cuh.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <array>
#include <cstdint>

namespace fusedfield {

template <bool TRANSPOSED>
inline void load_blocks(const __half* address, uint32_t (&blocks)[4]) {
    if (reinterpret_cast<uintptr_t>(address) % 16) {
        std::fprintf(stderr, "ldmatrix: a row that does not start at a multiple of 16 bytes\n");
        std::abort();
    }
    const int g = emulator::lane() / 4, q = emulator::lane() % 4;
    std::array<uint16_t, 8> own;  // read before the lanes meet: what others wrote is only there if the kernel waited for them
    std::memcpy(own.data(), address, sizeof own);
    const auto loaded = emulator::exchange(own, [=](const auto& row_of) {
        std::array<uint32_t, 4> result;
        for (int i = 0; i < 4; ++i) {
            const auto number = [&](int row, int column) { return uint32_t{row_of(8 * i + row)[column]}; };
            result[i] = TRANSPOSED ? number(2 * q, g) | number(2 * q + 1, g) << 16 : number(g, 2 * q) | number(g, 2 * q + 1) << 16;
        }
        return result;
    });
    std::copy(loaded.begin(), loaded.end(), blocks);
}

inline void multiply_add(float (&sums)[4], const uint32_t (&rows)[4], uint32_t low, uint32_t high) {
    struct Fragment {
        uint32_t rows[4], block[2];
    };
    const auto number = [](uint32_t pair, int which) {
        const auto bits = static_cast<uint16_t>(pair >> 16 * which);
        __half result;
        std::memcpy(&result, &bits, 2);
        return __half2float(result);
    };
    const int g = emulator::lane() / 4, q = emulator::lane() % 4;
    const auto products = emulator::exchange(Fragment{{rows[0], rows[1], rows[2], rows[3]}, {low, high}}, [=](const auto& of_lane) {
        std::array<float, 4> result{};
        for (int i = 0; i < 4; ++i)
            for (int k = 0; k < 16; ++k) {
                const int row_lane = 4 * g + k % 8 / 2, column_lane = 4 * (2 * q + i % 2) + k % 8 / 2;
                result[i] += number(of_lane(row_lane).rows[i / 2 + k / 8 * 2], k % 2) * number(of_lane(column_lane).block[k / 8], k % 2);
            }
        return result;
    });
    for (int i = 0; i < 4; ++i) sums[i] += products[i];
}

}  // namespace fusedfield
