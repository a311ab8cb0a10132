// Whole pictures of the Instant-NGP field in one launch. A warp takes a ray: its lanes look for occupied cells 32 steps at a time, what they find
// goes through grid and networks sixteen samples at a time, and the ray ends where it leaves the scene or light no longer gets through. So no
// sample is stored, at most fifteen are computed behind what is opaque, and nobody waits for the host.
#include "../../raymarching/src/walker.cuh"
#include "encode.cuh"
#include "launch.cuh"
#include "ngp.cuh"

namespace fusedfield {
namespace {

constexpr int SUMS = 5;  // three colours, opacity and depth

struct Sample {
    float middle, dt;
};

// What a warp's lanes tell each other of its ray, and what would take registers that the networks need.
struct Exchange {
    float origin[3];
    float sums[TILE][SUMS];  // of each lane with samples
    Sample found[TILE - 1 + WARP];  // and not yet seen: less than a tile of them, and then a group's
    float directions[TILE][3], positions[TILE][3];
    alignas(16) __half raw[TILE][RAW];
};

template <class Source>
struct Block {
    typename Source::Shared source;
    alignas(16) __half matrices[Geometry::size + Colour::size];
    uint32_t spread[raymarching::MAX_GRID_SIZE];
    Exchange exchange[WARPS];
};

// Adds a tile's samples, one a lane, to what the ray has gathered, as raymarching/src/composite_math.h does; those behind the first place where less
// than T_thresh gets through count nothing, and a lane without a sample has dt = 0. Returns the transmittance behind the tile.
__device__ __forceinline__ float composite(const __half (&raw)[RAW], Sample sample, float through, float T_thresh, float (&sums)[SUMS]) {
    const float tau = sample.dt > 0 ? expf(__half2float(raw[0])) * sample.dt : 0.0f;
    const float behind = through * raymarching::product_up_to(expf(-tau), lane());
    const float before = __shfl_up_sync(~0u, behind, 1), reached = lane() == 0 ? through : before;
    if (sample.dt > 0 && !(reached < T_thresh)) {
        const float weight = reached * -expm1f(-tau);
#pragma unroll
        for (int i = 0; i < 3; ++i) sums[i] += weight / (1 + expf(-__half2float(raw[1 + i])));
        sums[3] += weight, sums[4] += weight * sample.middle;
    }
    return __shfl_sync(~0u, behind, WARP - 1);
}

// The lanes' sums together, to the picture.
__device__ __forceinline__ void write(const float (&sums)[SUMS], int ray, const Picture& picture) {
    float all[SUMS];
#pragma unroll
    for (int i = 0; i < SUMS; ++i) all[i] = raymarching::sum_of_lanes(lane() < TILE ? sums[i] : 0.0f);
    if (lane() != 0) return;
    for (int i = 0; i < 3; ++i) picture.features[3 * ray + i] = all[i];
    picture.opacity[ray] = all[3], picture.depth[ray] = all[4];
}

template <class Source>
__global__ void __launch_bounds__(THREADS, 3)
    render_kernel(Source source, NGPMatrices matrices, const __grid_constant__ raymarching::March march, const __grid_constant__ Picture picture, int* next) {
    auto& block = shared_block<Block<Source>>();
    source.prepare(block.source);
    const Geometry geometry(matrices.geometry, block.matrices);
    const Colour colour(matrices.colour, block.matrices + Geometry::size);
    for (int i = threadIdx.x; i < march.grid_size; i += THREADS) block.spread[i] = raymarching::spread_bits(i);
    Exchange& mine = block.exchange[warp()];
    source.given.positions = &mine.positions[0][0];
    __syncthreads();
    while (true) {
        __syncwarp();  // all are done with the ray before
        int ray = lane() == 0 ? atomicAdd(next, 1) : 0;
        ray = __shfl_sync(~0u, ray, 0);
        if (ray >= picture.rays) return;
        if (lane() < TILE) {
            for (int i = 0; i < 3; ++i) mine.directions[lane()][i] = picture.directions[3 * ray + i];
            for (int i = 0; i < SUMS; ++i) mine.sums[lane()][i] = 0;
        }
        if (lane() < 3) mine.origin[lane()] = picture.origins[3 * ray + lane()];
        __syncwarp();
        float t = picture.near[ray], far = raymarching::least(picture.far[ray], FLT_MAX);
        if (!raymarching::finite_ray(mine.origin, mine.directions[0])) far = t;
        float through = 1;
        int found = 0;
        while (!(through < picture.T_thresh)) {
            raymarching::Walker walker{march, picture.bitfield, block.spread, {}, {}, far, lane(), march.growth[lane()]};
            for (int i = 0; i < 3; ++i) walker.origin[i] = mine.origin[i], walker.direction[i] = mine.directions[0][i];
            while (found < TILE && t < far) {
                const float step = walker.lay_group(t);
                const uint32_t mask = walker.look(step);
                const float dt = raymarching::step_size(march, step);
                if (mask >> lane() & 1) mine.found[found + __popc(mask & ((1u << lane()) - 1))] = {fmaf(0.5f, dt, step), dt};
                found += __popc(mask);
            }
            if (found == 0) break;
            __syncwarp();
            const int used = min(found, TILE);
            Sample sample{}, later{};  // of the tile; of those that stay
            if (lane() < used) {
                sample = mine.found[lane()];
                raymarching::sample_position(march, walker.origin, walker.direction, sample.middle, mine.positions[lane()]);
            }
            if (TILE + lane() < found) later = mine.found[TILE + lane()];
            __syncwarp();
            if (TILE + lane() < found) mine.found[lane()] = later;
            found -= used;
            Rows<OUTPUTS> outputs[1];
            Rows<ENCODED> encoding[1];
            source.read(block.source, 0, used, encoding);
            run_networks(geometry, colour, encoding, &mine.directions[0][0], used, outputs);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                __half2 pair = outputs[0].at[0][h];
                if (lane() % 4 == 0) pair = __halves2half2(__hadd(__low2half(pair), matrices.start), __high2half(pair));
                if (lane() % 4 < RAW / 2) *reinterpret_cast<__half2*>(&mine.raw[8 * h + lane_row()][lane_column()]) = pair;
            }
            __syncwarp();
            through = composite(mine.raw[lane() % TILE], sample, through, picture.T_thresh, mine.sums[lane() % TILE]);
            __syncwarp();  // all have read what the next tile overwrites
        }
        write(mine.sums[lane() % TILE], ray, picture);
    }
}

}  // namespace

template <typename Value>
cudaError_t launch_ngp_render(Positions<Value> given, NGPWeights weights, const raymarching::March& march, const Picture& picture, int* next, cudaStream_t stream) {
    using Source = Gathered<ENCODED, Value>;
    return launch(render_kernel<Source>, sizeof(Block<Source>), Work{picture.rays, WARPS}, stream, Source{given}, NGPMatrices(weights), march, picture, next);
}

template cudaError_t launch_ngp_render(Positions<__half>, NGPWeights, const raymarching::March&, const Picture&, int*, cudaStream_t);
template cudaError_t launch_ngp_render(Positions<float>, NGPWeights, const raymarching::March&, const Picture&, int*, cudaStream_t);

}  // namespace fusedfield
