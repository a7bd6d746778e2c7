// Rows of different dims as one zero-padded block. Each thread writes its own rows; rows are asked
// for ahead of use.
#include "decode.h"
#include "dispatch.h"

namespace varemb {
namespace {

// Fewest lookups worth a second thread: about 20 microseconds of work.
constexpr int64_t kGrain = 512;

template <typename T>
void write_padded(const T* from, int64_t dim, T* to, int64_t width) {
  if constexpr (sizeof(T) == sizeof(float)) {
    constexpr int64_t step = Vec<T>::kLanes;
    int64_t k = 0;
    for (; k + step <= dim; k += step) Vec<T>::load(from + k).store(to + k);
    for (; k < dim; k += step) Vec<T>::load(from + k, dim - k).store(to + k, width - k);
    for (; k + step <= width; k += step) Vec<T>::zero().store(to + k);
    for (; k < width; k += step) Vec<T>::zero().store(to + k, width - k);
  } else {
    if (dim > 0) std::memcpy(to, from, static_cast<size_t>(dim) * sizeof(T));
    std::memset(static_cast<void*>(to + dim), 0, static_cast<size_t>(width - dim) * sizeof(T));
  }
}

template <typename T, typename Index, typename Rows>
BadIndex copy_rows(const Call<T, Index, Rows>& call, int64_t begin, int64_t end, T* to) {
  constexpr int64_t kBuffer = 256;
  const int64_t width = call.rows.width;
  Ahead<T, Index, Rows> ahead(call, begin, end);
  for (int64_t at = begin; at < end; at += kBuffer) {
    const int64_t count = std::min(kBuffer, end - at);
    const Source<T>* rows = ahead.start(count);
    for (int64_t i = 0; i < count; ++i) {
      ahead.step();
      write_padded(rows[i].numbers, rows[i].dim, to + (at + i) * width, width);
    }
  }
  return ahead.bad();
}

Tensor lookup(
    const Tensor& values,                // [E]
    const Tensor& index,                 // [blocks, 4] or [words]
    const Tensor& indices,               // [L]
    const std::optional<Tensor>& limit,  // [1] or [L]
    int64_t num_rows,
    int64_t width,
    int64_t granule) {
  const char* op = "lookup";
  const RowsArgs where{index, num_rows, width, granule, values.size(0)};
  check_lookup(op, values, indices, limit, where);
  check_last_row(op, where);
  const int64_t lookups = indices.size(0);
  Tensor out = torch::stable::new_empty(values, {lookups, width});
  if (lookups == 0) return out;
  BadIndex bad;
  dispatch_values(op, values, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    dispatch_calls<T>(values, where, indices, limit, -1, [&](const auto& call) {
      T* const to = mutable_data<T>(out);
      bad = parallel_lookup(lookups, kGrain, [&](int64_t begin, int64_t end) {
        return copy_rows(call, begin, end, to);
      });
    });
  });
  bad.raise(op, num_rows);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(varemb, CPU, m) { m.impl("lookup", TORCH_BOX(&lookup)); }

}  // namespace
}  // namespace varemb
