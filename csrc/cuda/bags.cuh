// What a pooled lookup looks up: bags of consecutive lookups.
#pragma once

#include "device.cuh"

namespace varemb {
namespace {

struct Bags {
  Integers offsets;  // [G] or [G + 1]
  int64_t bags;
  int64_t lookups;
  bool has_last;  // the last offset is the end of the last bag

  __device__ int64_t begin(int64_t bag) const {
    const int64_t first = offsets[bag];
    VAREMB_DEVICE_ASSERT((bag > 0 || first == 0) && "offsets must start at 0");
    VAREMB_DEVICE_ASSERT(first >= 0 && first <= lookups && "offsets pass the number of indices");
    return first;
  }

  __device__ int64_t end(int64_t bag) const {
    const int64_t past = bag + 1 < bags || has_last ? offsets[bag + 1] : lookups;
    VAREMB_DEVICE_ASSERT(past >= offsets[bag] && "offsets must not decrease");
    VAREMB_DEVICE_ASSERT(past <= lookups && "offsets pass the number of indices");
    return past;
  }

  // Lookups that lie in a bag: an included last offset may leave some out.
  __device__ int64_t covered() const { return bags > 0 ? end(bags - 1) : 0; }

  // The bag of a lookup below covered(): the last one that begins at or before it, so that empty
  // bags are passed over.
  __device__ int64_t of(int64_t position) const {
    int64_t low = 0;
    int64_t high = bags;
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      (offsets[middle] <= position ? low : high) = middle;
    }
    VAREMB_DEVICE_ASSERT(
        begin(low) <= position && position < end(low) && "offsets must not decrease");
    return low;
  }
};

}  // namespace
}  // namespace varemb
