// Rows of different dims as one zero-padded block. Kernels only: no torch.
#pragma once

#include "device.cuh"

namespace varemb {
namespace {

// A group of lanes writes kRows rows of the output, so that as many rows are on their way at once.
// Reads an index block and the row's own numbers, writes numbers and zeros in one pass; rows are
// not sorted. Deterministic.
template <typename T, typename Rows, int kLanes, int kRows>
__global__ void __launch_bounds__(kThreads) lookup_forward_kernel(
    const T* __restrict__ values,  // [E]
    Table<Rows> table,
    Integers indices,  // [L]
    Limit limit,
    int64_t lookups,
    T* __restrict__ out) {  // [L, D]
  const Group<kLanes> group;
  constexpr int kPerBlock = Group<kLanes>::kPerBlock;
  const int width = table.rows.width;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kPerBlock * kRows;
  // Neighbouring groups take neighbouring lookups.
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPerBlock * kRows + threadIdx.x / kLanes;
  for (int64_t first = begin; first < lookups; first += step) {
    // Beyond the last lookup the first one is read again, and not written.
    int64_t asked[kRows];
    Row where[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      asked[i] = indices[first + i * kPerBlock < lookups ? first + i * kPerBlock : first];
    table.find(asked, where);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t position = first + i * kPerBlock;
      where[i].dim = limit.apply(where[i].dim, position < lookups ? position : first);
    }
    for (int k = group.lane * Pack<T>::kSize; k < width; k += kLanes * Pack<T>::kSize) {
      Pack<T> packs[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i)
        packs[i] = load_pack(values + where[i].offset + k, where[i].dim - k);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int64_t position = first + i * kPerBlock;
        if (position < lookups) store_pack(out + position * width + k, width - k, packs[i]);
      }
    }
  }
}

}  // namespace
}  // namespace varemb
