// Contracts of the native operations. The Python fronts check first and speak to the user; these
// checks protect a direct call through torch.ops. std::invalid_argument becomes ValueError and
// std::out_of_range IndexError in Python.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace varemb {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename Error = std::invalid_argument, typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}

template <typename... Parts>
void check(bool holds, const Parts&... parts) {
  if (!holds) fail(parts...);
}

inline void check_index_dtype(const char* op, const char* name, const Tensor& tensor) {
  const auto dtype = tensor.scalar_type();
  check(
      dtype == ScalarType::Int || dtype == ScalarType::Long, op, ": ", name,
      " must be int32 or int64, got ", torch::headeronly::toString(dtype));
}

inline void check_vector(const char* op, const char* name, const Tensor& tensor) {
  check(
      tensor.dim() == 1 && tensor.is_contiguous(), op, ": ", name,
      " must be one-dimensional and contiguous");
}

// The packed index must hold a block for every row, so that no row number below num_rows reads past
// its end.
inline void check_rows(
    const char* op,
    const Tensor& index,
    int64_t num_rows,
    int64_t width,
    int64_t granule) {
  check(
      index.scalar_type() == ScalarType::Long && index.dim() == 2 && index.size(1) == 4 &&
          index.is_contiguous(),
      op, ": index must be a contiguous int64 tensor [blocks, 4]");
  check(
      num_rows >= 0 && num_rows <= index.size(0) * 24, op, ": index has ", index.size(0),
      " blocks of 24 rows, too few for ", num_rows, " rows");
  check(
      num_rows <= std::numeric_limits<uint32_t>::max(), op,
      ": a table holds at most 2^32 - 1 rows, got ", num_rows);
  check(width >= 0 && width <= 2048, op, ": width must be in [0, 2048], got ", width);
  check(granule >= 1 && granule <= 16, op, ": granule must be in [1, 16], got ", granule);
}

inline void check_limit(const char* op, const std::optional<Tensor>& limit, int64_t lookups) {
  if (!limit) return;
  check(limit->scalar_type() == ScalarType::Int, op, ": limit must be int32");
  check_vector(op, "limit", *limit);
  check(
      limit->size(0) == 1 || limit->size(0) == lookups, op,
      ": limit must have one element or one per index (", lookups, "), got ", limit->size(0));
}

// The first bad index of a call, found by any thread; reported after the parallel loop, because an
// exception must not leave one.
struct BadIndex {
  int64_t position = std::numeric_limits<int64_t>::max();
  int64_t index = 0;

  void keep_first(const BadIndex& other) {
    if (other.position < position) *this = other;
  }

  void raise(const char* op, int64_t num_rows) const {
    if (position == std::numeric_limits<int64_t>::max()) return;
    fail<std::out_of_range>(
        op, ": indices must be in [0, ", num_rows, "), got ", index, " at position ", position);
  }
};

}  // namespace
}  // namespace varemb
