// From run-time dtypes to compiled types, and what every host function of the CPU build shares.
#pragma once

#include "../checks.h"
#include "../rows.h"
#include "vec.h"

#include <mutex>
#include <utility>

namespace varemb {
namespace {

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls body(TypeTag<T>) for the dtype of stored numbers.
template <typename Body>
void dispatch_values(const char* op, const Tensor& values, const Body& body) {
  switch (values.scalar_type()) {
    case ScalarType::Float: return body(TypeTag<float>{});
    case ScalarType::Double: return body(TypeTag<double>{});
    case ScalarType::BFloat16: return body(TypeTag<BFloat16>{});
    case ScalarType::Half: return body(TypeTag<Half>{});
    default:
      fail(
          op, ": values must be float32, float64, bfloat16 or float16, got ",
          torch::headeronly::toString(values.scalar_type()));
  }
}

// Calls body(TypeTag<Index>) for int32 or int64 indices.
template <typename Body>
void dispatch_index(const char* op, const char* name, const Tensor& indices, const Body& body) {
  check_index_dtype(op, name, indices);
  if (indices.scalar_type() == ScalarType::Int) return body(TypeTag<int32_t>{});
  return body(TypeTag<int64_t>{});
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <typename T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

// `numbers` is the length of the flat buffer that the index points into: the last row must end
// inside it.
inline PackedRows packed_rows(
    const char* op,
    const Tensor& index,
    int64_t num_rows,
    int64_t width,
    int64_t granule,
    int64_t numbers) {
  check_rows(op, index, num_rows, width, granule);
  const PackedRows rows{
      data<uint8_t>(index), num_rows, static_cast<int32_t>(width), static_cast<int32_t>(granule)};
  if (num_rows > 0) {
    const Row last = rows(num_rows - 1);
    check(
        last.offset >= 0 && last.offset + last.dim <= numbers, op, ": the index describes ",
        last.offset + last.dim, " numbers, values has ", numbers);
  }
  return rows;
}

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
