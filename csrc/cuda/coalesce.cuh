// Where the summed gradient of a run goes when it is kept: into a flat dense tensor, or one run
// after another as the touched numbers alone. Kernels only: no torch.
#pragma once

#include "gradient.cuh"

namespace varemb {
namespace {

// The gradient of the flat values, zeros before.
template <typename T>
struct DenseSink {
  T* out;  // [E]

  template <int kLanes>
  __device__ void operator()(
      const Group<kLanes>& group,
      int64_t,
      int64_t,
      int64_t offset,
      int dim,
      const Tile<T, kLanes>& sum) const {
    sum.store(out + offset, group.lane, dim);
  }
};

// The touched numbers' places in the flat values and their gradients.
template <typename T>
struct SparseSink {
  const int64_t* first;  // [runs] of a run's numbers among all touched ones
  int64_t* positions;    // [n]
  T* numbers;            // [n]

  template <int kLanes>
  __device__ void operator()(
      const Group<kLanes>& group,
      int64_t run,
      int64_t,
      int64_t offset,
      int dim,
      const Tile<T, kLanes>& sum) const {
    sum.store(numbers + first[run], group.lane, dim);
    for (int k = group.lane; k < dim; k += kLanes) positions[first[run] + k] = offset + k;
  }
};

// One thread per run: how many of the row's numbers any lookup trains. Entries past the last run
// must be zero before.
template <typename T>
__global__ void __launch_bounds__(kThreads) run_dim_kernel(
    LookedUp<T> call,
    Runs runs,
    int64_t* __restrict__ dims) {  // [capacity + 1]
  const Group<1> group;
  const int64_t count = *runs.count;
  for (int64_t run = group.number; run < count; run += group.count) {
    const int64_t begin = runs.begin(run);
    const int stored = call.table(runs.keys[begin]).dim;
    int dim = call.limit.apply(stored, runs.positions[begin]);
    if (call.limit.stride != 0) {
      for (int64_t i = begin + 1; i < runs.end(run) && dim < stored; ++i) {
        const int other = call.limit.apply(stored, runs.positions[i]);
        dim = other > dim ? other : dim;
      }
    }
    dims[run] = dim;
  }
}

}  // namespace
}  // namespace varemb
