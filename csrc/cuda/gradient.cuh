// The gradient of a call, one distinct row after another. Lookups are sorted by row; the lookups of
// one row are a run. A run is summed in the order of its lookups and given to a sink, which stores
// it or updates the row with it. Kernels only: no torch.
#pragma once

#include "bags.cuh"
#include "device.cuh"

namespace varemb {
namespace {

// Lookups per window of the sorted order. A longer run is summed window by window, by as many
// groups, and the sums are added in order: results do not depend on who was first.
constexpr int kWindow = 64;

// What a call looked up, and the gradient of its output.
template <typename T>
struct LookedUp {
  const T* grad;  // [L, D], or [G, D] in bags
  Table<EitherRows> table;
  Integers indices;  // [L]
  Limit limit;
  int64_t lookups;
  int64_t padding_idx;
  Bags bags;                // when has_bags
  const int32_t* bag_of;    // [L], null without bags
  const T* weights;         // [L] or null
  const WideOf<T>* shares;  // [G], one over the bag's size, for the mean; else null
  const int32_t* winners;   // [G, D], for max; else null
};

// Lookups sorted by row, and where each row's run begins.
struct Runs {
  const uint32_t* keys;      // [L] rows, ascending; num_rows for lookups that have no gradient
  const int32_t* positions;  // [L] lookups in that order
  const int32_t* starts;     // [count]
  const int32_t* count;      // [1] runs
  const int32_t* total;      // [1] lookups in runs
  int64_t capacity;          // most runs there can be

  __device__ int64_t begin(int64_t run) const { return starts[run]; }
  __device__ int64_t end(int64_t run) const { return run + 1 < *count ? starts[run + 1] : *total; }

  // The run that holds a sorted place below total.
  __device__ int64_t at(int64_t place) const {
    int64_t low = 0;
    int64_t high = *count;
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      (starts[middle] <= place ? low : high) = middle;
    }
    return low;
  }
};

// The part of a long run that lies in a window: of the run that began before it, or of the run that
// begins in it and goes on. A window holds at most one of each, so that every part has a place.
struct Part {
  int64_t run = -1;  // -1: there is none
  int64_t begin = 0, end = 0;

  __device__ static Part in(const Runs& runs, int64_t window, bool begins) {
    const int64_t first = window * kWindow;
    const int64_t past = first + kWindow;
    const int64_t total = *runs.total;
    if (first >= total || (begins && past >= total)) return {};
    const int64_t run = runs.at(begins ? past - 1 : first);
    const int64_t begin = runs.begin(run);
    const int64_t end = runs.end(run);
    if (end - begin <= kWindow || (begin >= first) != begins) return {};
    return {run, begin > first ? begin : first, end < past ? end : past};
  }
};

// One thread per lookup: the key to sort by, and the bag.
template <typename T>
__global__ void __launch_bounds__(kThreads) key_kernel(
    LookedUp<T> call,
    bool has_bags,
    uint32_t* __restrict__ keys,      // [L]
    int32_t* __restrict__ positions,  // [L]
    int32_t* __restrict__ bag_of) {   // [L]
  const Group<1> group;
  for (int64_t i = group.number; i < call.lookups; i += group.count) {
    const int64_t row = call.indices[i];
    VAREMB_DEVICE_ASSERT(
        row >= 0 && row < call.table.rows.num_rows && "an index is outside the table");
    bool is_trained = row != call.padding_idx;
    if (has_bags) {
      const bool is_covered = i < call.bags.covered();
      bag_of[i] = is_covered ? static_cast<int32_t>(call.bags.of(i)) : 0;
      is_trained = is_trained && is_covered;
    }
    keys[i] = static_cast<uint32_t>(is_trained ? row : call.table.rows.num_rows);
    positions[i] = static_cast<int32_t>(i);
  }
}

// One thread per bag: one over the number of its lookups, padding left out.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    share_kernel(LookedUp<T> call, WideOf<T>* __restrict__ shares) {  // [G]
  const Group<1> group;
  for (int64_t bag = group.number; bag < call.bags.bags; bag += group.count) {
    int64_t kept = call.bags.end(bag) - call.bags.begin(bag);
    if (call.padding_idx >= 0) {
      for (int64_t i = call.bags.begin(bag); i < call.bags.end(bag); ++i)
        kept -= call.indices[i] == call.padding_idx;
    }
    shares[bag] = kept > 0 ? WideOf<T>(1) / static_cast<WideOf<T>>(kept) : WideOf<T>(0);
  }
}

// One thread per sorted place: whether a run begins there, and where the last run ends.
__global__ void __launch_bounds__(kThreads) run_kernel(
    const uint32_t* __restrict__ keys,  // [L]
    int64_t lookups,
    int64_t num_rows,
    uint8_t* __restrict__ begins,   // [L]
    int32_t* __restrict__ total) {  // [1], zero before
  const Group<1> group;
  for (int64_t i = group.number; i < lookups; i += group.count) {
    const bool is_trained = keys[i] < num_rows;
    begins[i] = is_trained && (i == 0 || keys[i - 1] != keys[i]);
    if (is_trained && (i + 1 == lookups || keys[i + 1] >= num_rows))
      *total = static_cast<int32_t>(i + 1);
  }
}

// Adds the gradients of the sorted places [begin, end) to a tile, in their order; returns how many
// numbers of the row any of them trains.
template <typename T, int kLanes>
__device__ int add_lookups(
    const LookedUp<T>& call,
    const Runs& runs,
    const Group<kLanes>& group,
    const Row& where,
    int64_t begin,
    int64_t end,
    Tile<T, kLanes>& sum) {
  using Acc = WideOf<T>;
  const int width = call.table.rows.width;
  int trained = 0;
#pragma unroll 2
  for (int64_t i = begin; i < end; ++i) {
    const int64_t position = runs.positions[i];
    const int64_t source = call.bag_of == nullptr ? position : call.bag_of[position];
    const int dim = call.limit.apply(where.dim, position);
    trained = dim > trained ? dim : trained;
    Acc scale = 1;
    if (call.weights != nullptr) scale = widen(call.weights[position]);
    if (call.shares != nullptr) scale = call.shares[source];
    const T* const row = call.grad + source * width;
    Tile<T, kLanes>::each(group.lane, dim, [&](int pack, int column) {
      const Pack<T> terms = load_pack(row + column, dim - column);
#pragma unroll
      for (int v = 0; v < Pack<T>::kSize; ++v) {
        Acc term = widen(terms.numbers[v]) * scale;
        // Max: a column's gradient belongs to the lookup that won it.
        if (call.winners != nullptr && column + v < dim &&
            call.winners[source * width + column + v] != position)
          term = 0;
        sum.numbers[pack * Pack<T>::kSize + v] += term;
      }
    });
  }
  return trained;
}

// A group of lanes per run: sums a run of up to kWindow lookups and gives it to the sink.
// Deterministic.
template <typename T, int kLanes, typename Sink>
__global__ void __launch_bounds__(kThreads)
    short_run_kernel(LookedUp<T> call, Runs runs, Sink sink) {
  const Group<kLanes> group;
  const int64_t count = *runs.count;
  for (int64_t run = group.number; run < count; run += group.count) {
    const int64_t begin = runs.begin(run);
    const int64_t end = runs.end(run);
    if (end - begin > kWindow) continue;
    const int64_t row = runs.keys[begin];
    const Row where = call.table(row);
    Tile<T, kLanes> sum;
    sum.fill(0);
    const int dim = add_lookups(call, runs, group, where, begin, end, sum);
    sink(group, run, row, where.offset, dim, sum);
  }
}

// A group of lanes per part of a long run: sums it into the part's place.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads) part_kernel(
    LookedUp<T> call,
    Runs runs,
    int64_t windows,
    WideOf<T>* __restrict__ sums,     // [windows, 2, D]
    int32_t* __restrict__ trained) {  // [windows, 2]
  const Group<kLanes> group;
  const int width = call.table.rows.width;
  for (int64_t place = group.number; place < 2 * windows; place += group.count) {
    const Part part = Part::in(runs, place / 2, place % 2 == 1);
    if (part.run < 0) continue;
    const Row where = call.table(runs.keys[part.begin]);
    Tile<T, kLanes> sum;
    sum.fill(0);
    const int dim = add_lookups(call, runs, group, where, part.begin, part.end, sum);
    if (group.lane == 0) trained[place] = dim;
    WideOf<T>* const to = sums + place * width;
    Tile<T, kLanes>::each(group.lane, where.dim, [&](int pack, int column) {
#pragma unroll
      for (int v = 0; v < Pack<T>::kSize; ++v) {
        if (column + v < where.dim) to[column + v] = sum.numbers[pack * Pack<T>::kSize + v];
      }
    });
  }
}

// A group of lanes per window in which a long run begins: adds the run's parts in order and gives
// the sum to the sink. Deterministic.
template <typename T, int kLanes, typename Sink>
__global__ void __launch_bounds__(kThreads) long_run_kernel(
    LookedUp<T> call,
    Runs runs,
    int64_t windows,
    const WideOf<T>* __restrict__ sums,   // [windows, 2, D]
    const int32_t* __restrict__ trained,  // [windows, 2]
    Sink sink) {
  const Group<kLanes> group;
  const int width = call.table.rows.width;
  for (int64_t window = group.number; window < windows; window += group.count) {
    const Part first = Part::in(runs, window, true);
    if (first.run < 0) continue;
    const int64_t row = runs.keys[first.begin];
    const Row where = call.table(row);
    const int64_t last = (runs.end(first.run) - 1) / kWindow;
    Tile<T, kLanes> sum;
    sum.fill(0);
    int dim = 0;
#pragma unroll 2
    for (int64_t i = window; i <= last; ++i) {
      const int64_t place = 2 * i + (i == window ? 1 : 0);
      dim = trained[place] > dim ? trained[place] : dim;
      const WideOf<T>* const part = sums + place * width;
      Tile<T, kLanes>::each(group.lane, where.dim, [&](int pack, int column) {
#pragma unroll
        for (int v = 0; v < Pack<T>::kSize; ++v) {
          if (column + v < where.dim) sum.numbers[pack * Pack<T>::kSize + v] += part[column + v];
        }
      });
    }
    sink(group, first.run, row, where.offset, dim, sum);
  }
}

}  // namespace
}  // namespace varemb
