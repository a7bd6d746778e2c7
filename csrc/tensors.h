// From tensors, and what only their run-time properties tell, to what kernels are written with.
#pragma once

#include "checks.h"
#include "rows.h"

namespace varemb {
namespace {

template <typename T>
struct TypeTag {
  using type = T;
};

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
template <typename T>
T* mutable_data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? mutable_data<T>(*tensor) : nullptr;
}

// Calls body(TypeTag<T>) for the dtype of stored numbers; the 16-bit types are the device's.
template <typename BFloat16, typename Half, typename Body>
void dispatch_numbers(const char* op, const Tensor& values, const Body& body) {
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

// The functors of checked arguments.
inline PackedRows packed_rows(const RowsArgs& args) {
  return {
      data<uint8_t>(args.index), args.num_rows, static_cast<int32_t>(args.width),
      static_cast<int32_t>(args.granule)};
}

inline PagedRows paged_rows(const RowsArgs& args) {
  const int64_t words = handle_words(args.num_rows);
  return {
      data<uint32_t>(args.index),
      data<uint64_t>(args.index) + words,
      args.index.size(0) - words,
      args.num_rows,
      args.numbers,
      static_cast<int32_t>(args.width)};
}

// Calls body with the functor of the index's layout.
template <typename Body>
void dispatch_layout(const RowsArgs& args, const Body& body) {
  if (is_paged(args.index)) return body(paged_rows(args));
  body(packed_rows(args));
}

inline EitherRows either_rows(const RowsArgs& args) {
  EitherRows either;
  dispatch_layout(args, [&](const auto& rows) { either = EitherRows(rows); });
  return either;
}

inline Limit limit_of(const std::optional<Tensor>& limit) {
  if (!limit) return {};
  return {data<int32_t>(*limit), limit->size(0) == 1 ? 0 : 1};
}

}  // namespace
}  // namespace varemb
