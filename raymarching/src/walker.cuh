// A ray that the 32 lanes of a warp walk together: a lane looks at one step of a group, and a ballot says which are samples.
#pragma once

#include "lanes.cuh"
#include "march_math.h"

namespace raymarching {

constexpr int MAX_GRID_SIZE = 1024;

static_assert(GROUP == LANES, "a lane a step");

// The ray that a warp walks, the same in all its lanes.
struct Walker {
  const March& m;
  const uint8_t* bitfield;
  const uint32_t* spread;  // bits of a coordinate, spread for a Morton code
  float origin[3], direction[3], far;
  int lane;
  float growth;  // of the lane's step in its group

  // Lays out the group that starts at t, which becomes the start of the next one. Returns the lane's step.
  __device__ __forceinline__ float lay_group(float& t) const {
    const Group group = group_at(m, t);
    if (group.step < 0) {
      float step = group.start;
      for (int j = 0; j < lane; ++j) step += step_size(m, step);
      t = __shfl_sync(ALL, step + step_size(m, step), GROUP - 1);
      return step;
    }
    t = step_of(group, GROUP, m.growth[GROUP]);
    return step_of(group, lane, growth);
  }

  // The lanes whose step is a sample, as a mask.
  __device__ __forceinline__ uint32_t look(float step) const {
    const float dt = step_size(m, step);
    float position[3];
    sample_position(m, origin, direction, fmaf(0.5f, dt, step), position);
    const Cell cell = cell_of(m, position, dt);
    const uint32_t code = spread[cell.index[0]] | spread[cell.index[1]] << 1 | spread[cell.index[2]] << 2;
    return __ballot_sync(ALL, step < far && occupied(m, cell.cascade, code, bitfield));
  }

  // Writes the samples of a group, of which `emitted` came before. Returns how many have been emitted then.
  __device__ __forceinline__ int write(float step, uint32_t mask, int emitted, int count, int64_t first, int32_t ray,
                                       const SampleRows& samples) const {
    const int mine = emitted + __popc(mask & ((1u << lane) - 1));
    if (mask >> lane & 1 && mine < count) {
      const float dt = step_size(m, step), middle = fmaf(0.5f, dt, step);
      float position[3];
      sample_position(m, origin, direction, middle, position);
      samples.write(first + mine, position, direction, middle, dt, ray);
    }
    return emitted + __popc(mask);
  }
};

}  // namespace raymarching
