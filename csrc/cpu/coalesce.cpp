// The gradient of a call with one entry per distinct row: as a flat dense tensor, or as its touched
// numbers alone.
#include "gradient.h"

namespace varemb {
namespace {

Tensor coalesce_dense(
    const Tensor& grad,
    const Tensor& index,
    const Tensor& indices,
    const std::optional<Tensor>& offsets,
    const std::optional<Tensor>& per_sample_weights,
    const std::optional<Tensor>& limit,
    const std::optional<Tensor>& winners,
    int64_t num_rows,
    int64_t granule,
    int64_t mode,
    int64_t padding_idx,
    bool include_last_offset,
    int64_t numbers) {
  const GradientArgs args{
      grad,    index,    indices, offsets, per_sample_weights, limit,
      winners, num_rows, granule, mode,    padding_idx,        include_last_offset};
  const char* op = "coalesce_dense";
  check_gradient(op, args, numbers);
  Tensor out = torch::stable::new_zeros(grad, {numbers});
  if (indices.size(0) == 0) return out;
  dispatch_values(op, grad, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    const Gradient<T> gradient(op, args, numbers);
    T* const to = mutable_data<T>(out);
    torch::stable::parallel_for(0, gradient.chunks(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        gradient.each_sum(
            chunk,
            [&](const Run& run) {
              prefetch_bytes(to + run.where.offset, run.dim * static_cast<int64_t>(sizeof(T)));
            },
            [&](const Run& run, const auto* sum) {
              T* row = to + run.where.offset;
              for (int64_t k = 0; k < run.dim; k += Vec<T>::kLanes) {
                Vec<T>::load(sum + k, run.dim - k).store(row + k, run.dim - k);
              }
            });
      }
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> coalesce(
    const Tensor& grad,
    const Tensor& index,
    const Tensor& indices,
    const std::optional<Tensor>& offsets,
    const std::optional<Tensor>& per_sample_weights,
    const std::optional<Tensor>& limit,
    const std::optional<Tensor>& winners,
    int64_t num_rows,
    int64_t granule,
    int64_t mode,
    int64_t padding_idx,
    bool include_last_offset,
    int64_t numbers) {
  const GradientArgs args{
      grad,    index,    indices, offsets, per_sample_weights, limit,
      winners, num_rows, granule, mode,    padding_idx,        include_last_offset};
  const char* op = "coalesce";
  check_gradient(op, args, numbers);
  check_packed(op, index);
  Tensor positions;  // [n] places in the flat values, ascending
  Tensor sums;       // [n] their gradients
  dispatch_values(op, grad, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    const Gradient<T> gradient(op, args, numbers);
    const int64_t chunks = gradient.chunks();
    std::vector<int64_t> starts(static_cast<size_t>(chunks) + 1, 0);
    torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        gradient.each_run(chunk, [&](const Run& run) { starts[chunk + 1] += run.dim; });
      }
    });
    for (int64_t chunk = 0; chunk < chunks; ++chunk) starts[chunk + 1] += starts[chunk];
    positions =
        torch::stable::new_empty(grad, {starts.back()}, std::make_optional(ScalarType::Long));
    sums = torch::stable::new_empty(grad, {starts.back()});
    int64_t* const places = mutable_data<int64_t>(positions);
    T* const to = mutable_data<T>(sums);
    torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        int64_t at = starts[chunk];
        gradient.each_sum(
            chunk, [](const Run&) {},
            [&](const Run& run, const auto* sum) {
              for (int64_t k = 0; k < run.dim; ++k) places[at + k] = run.where.offset + k;
              for (int64_t k = 0; k < run.dim; k += Vec<T>::kLanes) {
                Vec<T>::load(sum + k, run.dim - k).store(to + at + k, run.dim - k);
              }
              at += run.dim;
            });
      }
    });
  });
  return {positions, sums};
}

STABLE_TORCH_LIBRARY_IMPL(varemb, CPU, m) {
  m.impl("coalesce_dense", TORCH_BOX(&coalesce_dense));
  m.impl("coalesce", TORCH_BOX(&coalesce));
}

}  // namespace
}  // namespace varemb
