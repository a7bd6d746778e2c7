// What a pooled lookup looks up: bags of consecutive indices, their offsets checked.
#pragma once

#include "dispatch.h"

namespace varemb {
namespace {

enum class Pool : int64_t { kSum = 0, kMean = 1, kMax = 2 };

inline Pool pool_of(const char* op, int64_t mode) {
  check(mode >= 0 && mode <= 2, op, ": mode must be 0 (sum), 1 (mean) or 2 (max), got ", mode);
  return static_cast<Pool>(mode);
}

template <typename Index>
struct Bags {
  const Index* offsets;  // [bags] or [bags + 1]
  int64_t bags;
  int64_t lookups;
  bool has_last;

  int64_t begin(int64_t bag) const { return static_cast<int64_t>(offsets[bag]); }
  int64_t end(int64_t bag) const {
    return bag + 1 < bags || has_last ? static_cast<int64_t>(offsets[bag + 1]) : lookups;
  }
};

inline int64_t count_bags(const Tensor& offsets, bool include_last_offset) {
  return offsets.size(0) - (include_last_offset ? 1 : 0);
}

template <typename Index>
Bags<Index> checked_bags(
    const char* op,
    const Tensor& offsets,
    int64_t lookups,
    bool include_last_offset) {
  check_vector(op, "offsets", offsets);
  const int64_t count = offsets.size(0);
  check(!include_last_offset || count > 0, op, ": include_last_offset needs at least one offset");
  const Index* numbers = data<Index>(offsets);
  check(
      count == 0 || numbers[0] == 0, op, ": offsets must start at 0, got ",
      count == 0 ? 0 : numbers[0]);
  for (int64_t i = 1; i < count; ++i) {
    check(
        numbers[i] >= numbers[i - 1], op, ": offsets must not decrease, got ", numbers[i - 1],
        " then ", numbers[i], " at position ", i);
  }
  const int64_t last = count == 0 ? 0 : static_cast<int64_t>(numbers[count - 1]);
  check(
      last <= lookups, op, ": offsets must not pass the number of indices ", lookups, ", got ",
      last);
  const int64_t bags = count_bags(offsets, include_last_offset);
  check(bags > 0 || lookups == 0, op, ": ", lookups, " indices need at least one bag");
  return {numbers, bags, lookups, include_last_offset};
}

}  // namespace
}  // namespace varemb
