// What a pooled lookup looks up: bags of consecutive indices, their offsets checked.
#pragma once

#include "dispatch.h"

namespace varemb {
namespace {

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

// Checks what only the offsets' numbers tell; check_bags must have been called.
template <typename Index>
Bags<Index> checked_bags(
    const char* op,
    const Tensor& offsets,
    int64_t lookups,
    bool include_last_offset) {
  const int64_t count = offsets.size(0);
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
  return {numbers, count - (include_last_offset ? 1 : 0), lookups, include_last_offset};
}

}  // namespace
}  // namespace varemb
