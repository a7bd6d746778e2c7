// What every host function of the CPU build shares: dispatch, bad indices, the parallel loop.
#pragma once

#include "../tensors.h"
#include "vec.h"

#include <limits>
#include <mutex>
#include <utility>

namespace varemb {
namespace {

// Calls body(TypeTag<T>) for the dtype of stored numbers.
template <typename Body>
void dispatch_values(const char* op, const Tensor& values, const Body& body) {
  dispatch_numbers<BFloat16, Half>(op, values, body);
}

// Calls body(TypeTag<Index>) for int32 or int64 indices.
template <typename Body>
void dispatch_index(const Tensor& indices, const Body& body) {
  if (indices.scalar_type() == ScalarType::Int) return body(TypeTag<int32_t>{});
  body(TypeTag<int64_t>{});
}

// A packed index must describe no more numbers than there are; a paged one is checked row by row.
inline void check_last_row(const char* op, const RowsArgs& args) {
  if (is_paged(args.index) || args.num_rows == 0) return;
  const Row last = packed_rows(args)(args.num_rows - 1);
  check(
      last.offset >= 0 && last.offset + last.dim <= args.numbers, op, ": the index describes ",
      last.offset + last.dim, " numbers, values has ", args.numbers);
}

// The first bad index of a call, found by any thread; reported after the parallel loop, because an
// exception must not leave one.
struct BadIndex {
  int64_t position = std::numeric_limits<int64_t>::max();
  int64_t index = 0;

  bool is_bad() const { return position != std::numeric_limits<int64_t>::max(); }

  void keep_first(const BadIndex& other) {
    if (other.position < position) *this = other;
  }

  void raise(const char* op, int64_t num_rows) const {
    if (!is_bad()) return;
    if (index >= 0 && index < num_rows) {
      fail<std::out_of_range>(
          op, ": indices must be rows that the table has, got ", index, " at position ", position,
          ", which is absent");
    }
    fail<std::out_of_range>(
        op, ": indices must be in [0, ", num_rows, "), got ", index, " at position ", position);
  }
};

// Runs body(begin, end) over [0, size) on libtorch's threads; body returns the first bad index it
// met.
template <typename Body>
BadIndex parallel_lookup(int64_t size, int64_t grain, const Body& body) {
  BadIndex first;
  std::mutex guard;
  torch::stable::parallel_for(0, size, grain, [&](int64_t begin, int64_t end) {
    const BadIndex bad = body(begin, end);
    const std::lock_guard<std::mutex> hold(guard);
    first.keep_first(bad);
  });
  return first;
}

}  // namespace
}  // namespace varemb
