// Pooled rows of different dims: sum, mean or max over each bag, and the gradient of per-sample
// weights. Kernels only: no torch.
#pragma once

#include "bags.cuh"
#include "device.cuh"

namespace varemb {
namespace {

// Blocks that a multiprocessor must hold at once, so that enough rows are on their way: at most 72
// registers a thread for float, a few more for 16 bits, twice as many for double. One block more
// makes the compiler keep numbers in memory.
template <typename T>
constexpr int kBlocks = sizeof(T) == 8   ? 4
                        : sizeof(T) == 4 ? 7
                                         : 6;

constexpr int kMaxColumns = 8;  // that a lane keeps for the maximum

// What a call pools.
template <typename ValueType, typename RowsType>
struct Pooled {
  using Value = ValueType;
  using Rows = RowsType;

  const Value* values;  // [E]
  Table<Rows> table;
  Integers indices;      // [L]
  const Value* weights;  // [L] or null
  Limit limit;
  Bags bags;
  int64_t padding_idx;
};

// Lookups of a bag, one in each lane of a warp's part of the group: their rows are found by one
// chain of loads for all of them, and then handed around.
template <typename T, typename Rows, int kLanes>
struct Found {
  static constexpr int kCount = kLanes < 32 ? kLanes : 32;

  int64_t offset = 0;
  int32_t dim = -1;      // -1: past the bag's end, or a lookup that does not count
  WideOf<T> weight = 0;  // zero then, so that the product with a missing number is one, too

  __device__ static Found at(const Pooled<T, Rows>& call, int64_t first, int64_t end) {
    Found found;
    const int64_t position = first + threadIdx.x % kCount;
    if (position >= end) return found;
    const int64_t index = call.indices[position];
    const Row where = call.table(index);
    if (index == call.padding_idx) return found;
    found.offset = where.offset;
    found.dim = call.limit.apply(where.dim, position);
    found.weight = call.weights == nullptr ? WideOf<T>(1) : widen(call.weights[position]);
    return found;
  }

  // What lane `source` of the warp's part found; all its lanes must call it.
  __device__ Found from(int source) const {
    const unsigned first = threadIdx.x % 32 / kCount * kCount;
    const unsigned lanes = (kCount == 32 ? 0xffffffffu : (1u << kCount) - 1) << first;
    Found found;
    found.offset = __shfl_sync(lanes, offset, source, kCount);
    found.dim = __shfl_sync(lanes, dim, source, kCount);
    found.weight = __shfl_sync(lanes, weight, source, kCount);
    return found;
  }
};

// Calls visit(kRows found lookups, position of the first) for a bag's lookups in their order; the
// next lookups are found while these are read.
template <int kLanes, int kRows, typename T, typename Rows, typename Visit>
__device__ void each_lookup(
    const Pooled<T, Rows>& call,
    int64_t begin,
    int64_t end,
    const Visit& visit) {
  using Lookups = Found<T, Rows, kLanes>;
  static_assert(Lookups::kCount % kRows == 0);
  Lookups next = Lookups::at(call, begin, end);
  for (int64_t first = begin; first < end; first += Lookups::kCount) {
    const Lookups found = next;
    next = Lookups::at(call, first + Lookups::kCount, end);
    for (int i = 0; i < Lookups::kCount && first + i < end; i += kRows) {
      Lookups rows[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) rows[r] = found.from(i + r);
      visit(rows, first + i);
    }
  }
}

template <typename T, int kRows, typename Lookups>
__device__ void load_packs(
    const T* values,
    const Lookups (&rows)[kRows],
    int column,
    Pack<T> (&packs)[kRows]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    packs[r] = load_pack(values + rows[r].offset + column, rows[r].dim - column);
}

// Lookups of a bag that count. All lanes of the group must call it.
template <typename T, typename Rows, int kLanes>
__device__ int64_t
count_kept(const Pooled<T, Rows>& call, const Group<kLanes>& group, int64_t begin, int64_t end) {
  if (call.padding_idx < 0) return end - begin;
  int64_t count = 0;
  for (int64_t i = begin + group.lane; i < end; i += kLanes)
    count += call.indices[i] != call.padding_idx;
  return group.sum(count);
}

// A group of lanes per bag adds the bag's rows in registers, in the order of its lookups, kRows on
// their way at once. A narrow row is read only where it has numbers. Deterministic.
template <typename T, typename Rows, int kLanes, int kRows, bool kIsMean>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) lookup_bag_sum_forward_kernel(
    Pooled<T, Rows> call,
    T* __restrict__ out) {  // [G, D]
  using Sum = Tile<T, kLanes>;
  const Group<kLanes> group;
  const int width = call.table.rows.width;
  for (int64_t bag = group.number; bag < call.bags.bags; bag += group.count) {
    const int64_t begin = call.bags.begin(bag);
    const int64_t end = call.bags.end(bag);
    WideOf<T> divisor = 1;
    if constexpr (kIsMean) {
      const int64_t count = count_kept(call, group, begin, end);
      if (count > 0) divisor = static_cast<WideOf<T>>(count);
    }
    Sum sum;
    sum.fill(0);
    each_lookup<kLanes, kRows>(call, begin, end, [&](const auto& rows, int64_t) {
      int widest = rows[0].dim;
#pragma unroll
      for (int r = 1; r < kRows; ++r) widest = rows[r].dim > widest ? rows[r].dim : widest;
      Sum::each(group.lane, widest, [&](int pack, int column) {
        Pack<T> packs[kRows];
        load_packs(call.values, rows, column, packs);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int v = 0; v < Pack<T>::kSize; ++v)
            sum.numbers[pack * Pack<T>::kSize + v] += widen(packs[r].numbers[v]) * rows[r].weight;
        }
      });
    });
    if constexpr (kIsMean) {
#pragma unroll
      for (int i = 0; i < Sum::kNumbers; ++i) sum.numbers[i] /= divisor;
    }
    sum.store(out + bag * width, group.lane, width);
  }
}

// A group of lanes per bag keeps the largest number of each column, a row's missing columns
// counting as zeros, and which lookup gave it: the first of equals; NaN wins and stays. Each number
// needs a second register for its winner, so a lane keeps kMaxColumns at a time and a wide table is
// read in parts. Deterministic.
template <typename T, typename Rows, int kLanes, int kRows>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) lookup_bag_max_forward_kernel(
    Pooled<T, Rows> call,
    T* __restrict__ out,              // [G, D]
    int32_t* __restrict__ winners) {  // [G, D], -1 where the bag is empty
  constexpr int kPack = Pack<T>::kSize;
  constexpr int kPacks = kMaxColumns / kPack;
  constexpr int kColumns = kLanes * kMaxColumns;
  const Group<kLanes> group;
  const int width = call.table.rows.width;
  const int parts = (width + kColumns - 1) / kColumns;
  for (int64_t place = group.number; place < call.bags.bags * parts; place += group.count) {
    const int64_t bag = place / parts;
    const int first_column = static_cast<int>(place % parts) * kColumns + group.lane * kPack;
    WideOf<T> best[kMaxColumns] = {};
    int32_t winner[kMaxColumns];
#pragma unroll
    for (int i = 0; i < kMaxColumns; ++i) winner[i] = -1;
    const auto compete = [&](const auto& rows, int64_t first) {
#pragma unroll
      for (int pack = 0; pack < kPacks; ++pack) {
        Pack<T> packs[kRows];
        load_packs(call.values, rows, first_column + pack * kLanes * kPack, packs);
#pragma unroll
        for (int i = 0; i < kRows * kPack; ++i) {
          const int r = i / kPack;
          const int at = pack * kPack + i % kPack;
          const WideOf<T> number = widen(packs[r].numbers[i % kPack]);
          const bool is_larger = !(number <= best[at]) && best[at] == best[at];
          if (rows[r].dim < 0 || (winner[at] >= 0 && !is_larger)) continue;
          best[at] = number;
          winner[at] = static_cast<int32_t>(first + r);
        }
      }
    };
    each_lookup<kLanes, kRows>(call, call.bags.begin(bag), call.bags.end(bag), compete);
#pragma unroll
    for (int at = 0; at < kMaxColumns; ++at) {
      const int column = first_column + at / kPack * kLanes * kPack + at % kPack;
      if (column >= width) continue;
      out[bag * width + column] = narrow<T>(best[at]);
      winners[bag * width + column] = winner[at];
    }
  }
}

// A group of lanes per lookup: the product of its row with the gradient of its bag; 0 for lookups
// that do not count or lie in no bag. Deterministic.
template <typename T, typename Rows, int kLanes>
__global__ void __launch_bounds__(kThreads) lookup_bag_weights_backward_kernel(
    Pooled<T, Rows> call,
    const T* __restrict__ grad,  // [G, D]
    T* __restrict__ out) {       // [L]
  const Group<kLanes> group;
  const int width = call.table.rows.width;
  const int64_t covered = call.bags.covered();
  for (int64_t position = group.number; position < call.bags.lookups; position += group.count) {
    const int64_t index = call.indices[position];
    const Row where = call.table(index);
    const bool counts = position < covered && index != call.padding_idx;
    const int dim = counts ? call.limit.apply(where.dim, position) : 0;
    const T* const numbers = call.values + where.offset;
    const T* const factors = grad + (counts ? call.bags.of(position) : 0) * width;
    WideOf<T> dot = 0;
    for (int k = group.lane * Pack<T>::kSize; k < dim; k += kLanes * Pack<T>::kSize) {
      const Pack<T> left = load_pack(numbers + k, dim - k);
      const Pack<T> right = load_pack(factors + k, dim - k);
#pragma unroll
      for (int v = 0; v < Pack<T>::kSize; ++v)
        dot += widen(left.numbers[v]) * widen(right.numbers[v]);
    }
    dot = group.sum(dot);
    if (group.lane == 0) out[position] = narrow<T>(dot);
  }
}

}  // namespace
}  // namespace varemb
