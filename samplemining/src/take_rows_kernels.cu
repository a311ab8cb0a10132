// The CUDA kernel that gathers rows of several tensors at once. It reads 8 bytes of index a row and tensor, mostly from L2, and reads and
// writes the rows: 36 bytes each way for positions, directions, t, dt and a number. 2^18 rows of 2^20 take 8 us when they come from memory.
#include "samplemining_cuda.h"

namespace samplemining {
namespace {

constexpr int take_threads = 256;  // of a block, which handles as many rows of one tensor
static_assert(take_threads * max_row_bytes / 4 < (int64_t(1) << 31), "a block's units fit 32 bits");

// Neighbouring threads move neighbouring units of the rows, so that what is written is written in order.
template <typename Unit>
__device__ __forceinline__ void copy_rows(const Gather& gather, const int64_t* row_of, int64_t first, int count) {
    const unsigned units = static_cast<unsigned>(gather.bytes / sizeof(Unit));
    const auto from = static_cast<const Unit*>(gather.from);
    const auto to = static_cast<Unit*>(gather.to) + first * units;
    for (unsigned i = threadIdx.x; i < count * units; i += take_threads) {
        const unsigned row = i / units;
        const int64_t source = row_of[row];
        to[i] = source < 0 ? Unit{} : __ldg(from + source * units + (i - row * units));
    }
}

__global__ void __launch_bounds__(take_threads)
    take_kernel(const __grid_constant__ Gathers gathers, const int64_t* __restrict__ index, int64_t rows, int64_t held) {
    __shared__ int64_t row_of[take_threads];  // -1 for a row that is not there
    const int64_t first = int64_t(blockIdx.x) * take_threads, left = rows - first;
    const int count = left < take_threads ? static_cast<int>(left) : take_threads;
    if (static_cast<int>(threadIdx.x) < count) {
        const int64_t row = index[first + threadIdx.x];
        row_of[threadIdx.x] = row >= 0 && row < held ? row : -1;
    }
    __syncthreads();
    const Gather& gather = gathers.each[blockIdx.y];
    const bool wide = (gather.bytes | static_cast<int>(reinterpret_cast<uintptr_t>(gather.from)) |
                       static_cast<int>(reinterpret_cast<uintptr_t>(gather.to))) % 16 == 0;
    if (wide) copy_rows<uint4>(gather, row_of, first, count);
    else copy_rows<uint32_t>(gather, row_of, first, count);
}

}  // namespace

cudaError_t launch_take(const Gathers& gathers, const int64_t* index, int64_t rows, int64_t held, cudaStream_t stream) {
    if (rows == 0) return cudaSuccess;
    const dim3 blocks(static_cast<unsigned>((rows + take_threads - 1) / take_threads), static_cast<unsigned>(gathers.count));
    take_kernel<<<blocks, take_threads, 0, stream>>>(gathers, index, rows, held);
    return cudaGetLastError();
}

}  // namespace samplemining
