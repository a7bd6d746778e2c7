// Rows moved to other places and other dims. Kernels only: no torch.
#pragma once

#include "../move.h"
#include "device.cuh"

namespace varemb {
namespace {

// A group of kLanes lanes per move copies kNumbers numbers per lane at a time. T is an unsigned
// integer of the number's size. out and values may be one buffer, and a row may move to a place
// that overlaps its own: the lanes read before any of them writes, from the end that is written
// over last. Deterministic.
template <typename T, int kLanes, int kNumbers>
__global__ void __launch_bounds__(kThreads) repack_kernel(
    const T* values,    // [E]
    const Move* moves,  // [M]
    int64_t count,
    int64_t numbers,
    int64_t written,
    T* out) {  // [new E]
  static_assert(kLanes < 32);
  constexpr int kChunk = kLanes * kNumbers;
  const Group<kLanes> group;
  const unsigned lanes = ((1u << kLanes) - 1) << threadIdx.x % 32 / kLanes * kLanes;
  for (int64_t m = group.number; m < count; m += group.count) {
    const Move move = moves[m];
    VAREMB_DEVICE_ASSERT(move.is_inside(numbers, written) && "a move leaves the tensors");
    const T* const from = values + move.source;
    T* const to = out + move.target;
    const int64_t chunks = (move.dim + kChunk - 1) / kChunk;
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t first = (to <= from ? c : chunks - 1 - c) * kChunk + group.lane;
      T chunk[kNumbers];
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) {
        const int64_t k = first + i * kLanes;
        chunk[i] = k < move.kept ? from[k] : T(0);
      }
      __syncwarp(lanes);  // every lane has read its part of the chunk
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) {
        const int64_t k = first + i * kLanes;
        if (k < move.dim) to[k] = chunk[i];
      }
    }
  }
}

}  // namespace
}  // namespace varemb
