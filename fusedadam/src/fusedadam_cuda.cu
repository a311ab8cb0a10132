// CUDA kernels of the optimiser. Both see all parameters, up to 16 a launch, cut into tiles of 4096 elements, a block each.
//
// check_kernel reads the dense gradients once (4 bytes an element) and decides whether the step counts: 2 to 3 microseconds for the
// few ten thousand weights of small networks. update_kernel reads the gradient, and for what is updated reads and writes parameter and
// both moments and writes the half copy: 30 bytes a dense element, 0.12 ms for 12.2 M of them at 3 TB/s. Of a sparse parameter
// everything but the gradient is read only where four neighbours are not all without gradient, in sectors of 32 bytes: with 30 percent
// touched about 4 + 0.3 (4 + 26) = 13 bytes an element or 0.05 ms, and up to twice that where what is touched lies scattered.
#include "fusedadam_cuda.h"

namespace fusedadam {
namespace {

constexpr int threads = 256, vectors = 4, max_leaves = 16;
constexpr int64_t tile = int64_t(threads) * vectors * 4;  // elements of a block: each thread takes `vectors` times four

// The leaves of one launch; tiles are numbered through, and those of leaf i end before end[i].
struct Batch {
    Leaf<__half> leaves[max_leaves];
    int64_t end[max_leaves];
    int count;

    int64_t tiles() const { return count ? end[count - 1] : 0; }

    void add(const Leaf<__half>& leaf) {
        end[count] = tiles() + (leaf.count + tile - 1) / tile;
        leaves[count++] = leaf;
    }
};

// The leaf that a block works on, null where there is nothing for it, and where in it the block begins.
struct Share {
    const Leaf<__half>* leaf = nullptr;
    int64_t first = 0;

    __device__ __forceinline__ explicit Share(const Batch& batch) {
        const int64_t number = blockIdx.x;
        int i = 0;
        while (i < batch.count && number >= batch.end[i]) ++i;
        if (i == batch.count) return;
        leaf = &batch.leaves[i];
        first = (number - (i ? batch.end[i - 1] : 0)) * tile;
    }

    // The first of the four elements that this thread takes in its turn k.
    __device__ __forceinline__ int64_t element(int k) const { return first + (int64_t(k) * threads + threadIdx.x) * 4; }
};

__device__ __forceinline__ bool on_boundary(const void* pointer, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Up to four neighbouring numbers: in one access where `whole`, else the `left` that there are one by one, the others zero.
struct Quad {
    float lane[4];
};

__device__ __forceinline__ Quad load(const float* from, bool whole, int64_t left) {
    Quad quad = {};
    if (whole) {
        const float4 four = *reinterpret_cast<const float4*>(from);
        quad = {{four.x, four.y, four.z, four.w}};
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (i < left) quad.lane[i] = from[i];
    }
    return quad;
}

__device__ __forceinline__ void store(const Quad& quad, bool whole, int64_t left, float* to) {
    if (whole) {
        *reinterpret_cast<float4*>(to) = make_float4(quad.lane[0], quad.lane[1], quad.lane[2], quad.lane[3]);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (i < left) to[i] = quad.lane[i];
    }
}

__device__ __forceinline__ void store(const Quad& quad, bool whole, int64_t left, __half* to) {
    if (whole) {
        __half2 pairs[2] = {__floats2half2_rn(quad.lane[0], quad.lane[1]), __floats2half2_rn(quad.lane[2], quad.lane[3])};
        *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(pairs);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (i < left) to[i] = __float2half_rn(quad.lane[i]);
    }
}

// Ends a block's part: notes an overflow that any of its threads saw. True in one thread of the whole grid, after all blocks have come
// here: what they read of the control tensor is read, and what they wrote to it is seen.
__device__ __forceinline__ bool is_last(Control* control, bool overflow) {
    const bool any = __syncthreads_or(overflow);
    if (threadIdx.x != 0) return false;
    if (any) atomicExch(&control->overflow, 1.f);
    __threadfence();
    const bool last = atomicInc(&control->ticket, gridDim.x - 1) == gridDim.x - 1;  // the last one sets it to 0 again
    __threadfence();
    return last;
}

// `last`: no batch follows in this step.
__global__ void __launch_bounds__(threads)
    check_kernel(const __grid_constant__ Batch batch, Control* control, const __grid_constant__ Settings settings, bool last) {
    const Share share(batch);
    bool bad = false;
    if (share.leaf) {
        const float* gradient = share.leaf->gradient;
        const int64_t count = share.leaf->count;
        const bool aligned = on_boundary(gradient, 16);
#pragma unroll
        for (int k = 0; k < vectors; ++k) {
            const int64_t left = count - share.element(k);
            const Quad g = load(gradient + share.element(k), aligned && left >= 4, left);
#pragma unroll
            for (int i = 0; i < 4; ++i) bad |= !finite(g.lane[i]);
        }
    }
    if (is_last(control, bad) && last) begin_step(*control, settings, atomicAdd(&control->overflow, 0.f) != 0);
}

__global__ void __launch_bounds__(threads, 4)
    update_kernel(const __grid_constant__ Batch batch, Control* control, const __grid_constant__ Settings settings, bool last) {
    const Share share(batch);
    const bool applies = control->applies != 0;
    bool bad = false;
    if (share.leaf && (share.leaf->sparse || applies)) {
        const Leaf<__half>& leaf = *share.leaf;
        const Update by(*control, settings, *leaf.rate);
        const bool aligned = on_boundary(leaf.parameter, 16) && on_boundary(leaf.gradient, 16) && on_boundary(leaf.first, 16) &&
                             on_boundary(leaf.second, 16) && on_boundary(leaf.copy, 8);
        Quad gradient[vectors];
#pragma unroll
        for (int k = 0; k < vectors; ++k) {
            const int64_t left = leaf.count - share.element(k);
            gradient[k] = load(leaf.gradient + share.element(k), aligned && left >= 4, left);
        }
#pragma unroll
        for (int k = 0; k < vectors; ++k) {
            const int64_t at = share.element(k), left = leaf.count - at;
            const bool whole = aligned && left >= 4;
            const Quad& g = gradient[k];
            bool touched = left > 0;
            if (leaf.sparse) {
                touched = g.lane[0] != 0 || g.lane[1] != 0 || g.lane[2] != 0 || g.lane[3] != 0;
                if (touched) store(Quad{}, whole, left, leaf.gradient + at);
            }
            if (!touched || !applies) continue;
            Quad parameter = load(leaf.parameter + at, whole, left);
            Quad first = load(leaf.first + at, whole, left), second = load(leaf.second + at, whole, left);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const bool good = finite(g.lane[i]);
                bad |= !good;
                if (good && (!leaf.sparse || g.lane[i] != 0)) update(by, g.lane[i], parameter.lane[i], first.lane[i], second.lane[i]);
            }
            store(parameter, whole, left, leaf.parameter + at);
            store(first, whole, left, leaf.first + at);
            store(second, whole, left, leaf.second + at);
            if (leaf.copy) store(parameter, whole, left, leaf.copy + at);
        }
    }
    if (is_last(control, bad) && last) end_step(*control, settings, atomicExch(&control->overflow, 0.f) != 0);
}

// Launches the kernel for the leaves that `wanted` picks, 16 at a time, and at least once: the last launch moves the control tensor on.
template <typename Wanted>
cudaError_t launch(void (*kernel)(Batch, Control*, Settings, bool), const Leaf<__half>* leaves, int count, Control* control,
                   const Settings& settings, cudaStream_t stream, const Wanted& wanted) {
    Batch batch = {};
    const auto send = [&](bool last) {
        const int64_t blocks = batch.tiles() > 0 ? batch.tiles() : 1;
        kernel<<<static_cast<unsigned>(blocks), threads, 0, stream>>>(batch, control, settings, last);
        batch = {};
        return cudaGetLastError();
    };
    for (int i = 0; i < count; ++i) {
        if (!wanted(leaves[i])) continue;
        if (batch.count == max_leaves) {
            const cudaError_t error = send(false);
            if (error != cudaSuccess) return error;
        }
        batch.add(leaves[i]);
    }
    return send(true);
}

}  // namespace

cudaError_t launch_step(const Leaf<__half>* leaves, int count, Control* control, const Settings& settings, cudaStream_t stream) {
    const cudaError_t error =
        launch(check_kernel, leaves, count, control, settings, stream, [](const Leaf<__half>& leaf) { return !leaf.sparse; });
    if (error != cudaSuccess) return error;
    return launch(update_kernel, leaves, count, control, settings, stream, [](const Leaf<__half>&) { return true; });
}

}  // namespace fusedadam
