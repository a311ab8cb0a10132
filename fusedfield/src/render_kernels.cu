// Whole pictures of the Instant-NGP field in one launch. A warp has sixteen rays, one for each row of its tile: it marches each to its next
// occupied cell, takes the sixteen samples through grid and networks, and composites them; a ray that is done makes room for the next one of
// the picture. So no sample is stored, none is computed behind what is opaque, and nobody waits for the host.
//
// By count, bonsai at 800x533 takes some 40 samples a ray, 17 million; the forward kernel's rate for them is 4.7 ms on an H100.
#include "../../raymarching/src/march_math.h"
#include "encode.cuh"
#include "launch.cuh"
#include "ngp.cuh"

namespace fusedfield {
namespace {

constexpr int NOBODY = -1;

struct Ray {
    float origin[3], t, far;                   // marched up to t
    float middle, dt;                          // of the sample that is being looked at
    float through, colour[3], opacity, depth;  // transmittance and sums so far
    int number;                                // of the picture's rays, or NOBODY
    int unused;                                // an odd number of words: lanes' rays start in different banks
};

// What a warp's lanes tell each other.
struct Exchange {
    Ray rays[TILE];
    float directions[TILE][3], positions[TILE][3];
    alignas(16) __half raw[TILE][RAW];
};

template <class Source>
struct Block {
    typename Source::Shared source;
    alignas(16) __half matrices[Geometry::size + Colour::size];
    Exchange exchange[WARPS];
};

// Takes the next ray of the picture; false where there is none left.
__device__ bool begin(Ray& ray, float* direction, const Picture& picture, int* next) {
    const int number = atomicAdd(next, 1);
    if (number >= picture.rays) return false;
    for (int i = 0; i < 3; ++i) ray.origin[i] = picture.origins[3 * number + i], direction[i] = picture.directions[3 * number + i], ray.colour[i] = 0;
    ray.t = picture.near[number], ray.far = picture.far[number], ray.through = 1, ray.opacity = ray.depth = 0, ray.number = number;
    return true;
}

__device__ void finish(Ray& ray, const Picture& picture) {
    for (int i = 0; i < 3; ++i) picture.features[3 * ray.number + i] = ray.colour[i];
    picture.opacity[ray.number] = ray.opacity, picture.depth[ray.number] = ray.depth, ray.number = NOBODY;
}

// To the next sample of this ray or, where it has no more, of the next ones. False where the picture has no more.
__device__ bool find_sample(Ray& ray, float* direction, float* position, const raymarching::March& march, const Picture& picture, int* next) {
    while (ray.number != NOBODY || begin(ray, direction, picture, next)) {
        const auto found = [&](int, const float* at, float middle, float dt) {
            for (int i = 0; i < 3; ++i) position[i] = at[i];
            ray.middle = middle, ray.dt = dt;
        };
        if (raymarching::march(march, ray.origin, direction, picture.bitfield, ray.t, ray.far, 1, found)) return true;
        finish(ray, picture);
    }
    return false;
}

// Adds the sample to the ray's sums, as raymarching/src/composite_math.h does.
__device__ void composite(Ray& ray, const __half (&raw)[RAW], const Picture& picture) {
    const float tau = expf(__half2float(raw[0])) * ray.dt, weight = ray.through * -expm1f(-tau);
    for (int i = 0; i < 3; ++i) ray.colour[i] += weight / (1 + expf(-__half2float(raw[1 + i])));
    ray.opacity += weight, ray.depth += weight * ray.middle, ray.through *= expf(-tau);
    if (ray.through < picture.T_thresh) finish(ray, picture);
}

template <class Source>
__global__ void __launch_bounds__(THREADS, 3)
    render_kernel(Source source, NGPMatrices matrices, const __grid_constant__ raymarching::March march, const __grid_constant__ Picture picture, int* next) {
    extern __shared__ __align__(16) unsigned char memory[];
    auto& block = *reinterpret_cast<Block<Source>*>(memory);
    source.prepare(block.source);
    const Geometry geometry(matrices.geometry, block.matrices);
    const Colour colour(matrices.colour, block.matrices + Geometry::size);
    Exchange& mine = block.exchange[warp()];
    source.given.positions = &mine.positions[0][0];
    const bool marches = lane() < TILE;
    Ray& ray = mine.rays[lane() % TILE];
    if (marches) ray.number = NOBODY;
    __syncthreads();
    while (true) {
        const bool found = marches && find_sample(ray, mine.directions[lane()], mine.positions[lane()], march, picture, next);
        const unsigned rows = __ballot_sync(~0u, found);
        if (rows == 0) return;
        __syncwarp();
        Rows<OUTPUTS> outputs[1];
        Rows<ENCODED> encoding[1];
        source.read(block.source, 0, TILE, encoding);
        run_networks(geometry, colour, encoding, &mine.directions[0][0], TILE, outputs);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            __half2 pair = outputs[0].at[0][h];
            if (lane() % 4 == 0) pair = __halves2half2(__hadd(__low2half(pair), matrices.start), __high2half(pair));
            if (lane() % 4 < RAW / 2) *reinterpret_cast<__half2*>(&mine.raw[8 * h + lane_row()][lane_column()]) = pair;
        }
        __syncwarp();
        if (found) composite(ray, mine.raw[lane()], picture);
    }
}

}  // namespace

template <typename Value>
cudaError_t launch_ngp_render(Positions<Value> given, NGPWeights weights, const raymarching::March& march, const Picture& picture, int* next, cudaStream_t stream) {
    using Source = Gathered<ENCODED, Value>;
    return launch(render_kernel<Source>, sizeof(Block<Source>), picture.rays, WARPS * TILE, stream, Source{given}, NGPMatrices(weights), march, picture, next);
}

template cudaError_t launch_ngp_render(Positions<__half>, NGPWeights, const raymarching::March&, const Picture&, int*, cudaStream_t);
template cudaError_t launch_ngp_render(Positions<float>, NGPWeights, const raymarching::March&, const Picture&, int*, cudaStream_t);

}  // namespace fusedfield
