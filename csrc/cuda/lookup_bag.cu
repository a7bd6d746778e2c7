// Pooled rows of different dims: contract, launch, registration.
#include "lookup_bag.cuh"
#include "runtime.cuh"

#include <tuple>
#include <type_traits>

namespace varemb {
namespace {

// Calls body(Pooled, Lanes) for the dtype, the layout and the width of the rows.
template <typename Body>
void dispatch_pooled(
    const char* op,
    const Tensor& values,
    const RowsArgs& where,
    const Tensor& indices,
    const std::optional<Tensor>& weights,
    const std::optional<Tensor>& limit,
    const Bags& bags,
    int64_t padding_idx,
    const Body& body) {
  dispatch_values(op, values, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    dispatch_layout(where, [&](const auto& rows) {
      using Rows = std::decay_t<decltype(rows)>;
      const Pooled<T, Rows> call{data<T>(values),      {rows, where.numbers},
                                 integers_of(indices), data_or_null<T>(weights),
                                 limit_of(limit),      bags,
                                 padding_idx};
      dispatch_lanes(where.width, [&](auto lanes) { body(call, lanes); });
    });
  });
}

std::tuple<Tensor, Tensor> lookup_bag(
    const Tensor& values,                             // [E]
    const Tensor& index,                              // [blocks, 4] or [words]
    const Tensor& indices,                            // [L]
    const Tensor& offsets,                            // [G] or [G + 1]
    const std::optional<Tensor>& per_sample_weights,  // [L]
    const std::optional<Tensor>& limit,               // [1] or [L]
    int64_t num_rows,
    int64_t width,
    int64_t granule,
    int64_t mode,
    int64_t padding_idx,
    bool include_last_offset) {
  const char* op = "lookup_bag";
  const RowsArgs where{index, num_rows, width, granule, values.size(0)};
  const Pool pool = check_lookup_bag(
      op, values, indices, offsets, per_sample_weights, limit, where, mode, include_last_offset);
  const Bags bags = bags_of(offsets, indices.size(0), include_last_offset);
  const Device device(op, values, index, indices, offsets, per_sample_weights, limit);
  const Tensor out = torch::stable::new_empty(values, {bags.bags, width});
  // [G, D] for max: which index gave each number; else empty
  const Tensor winners = torch::stable::new_empty(
      values, {pool == Pool::kMax ? bags.bags : 0, width}, std::make_optional(ScalarType::Int));
  if (bags.bags == 0 || width == 0) return {out, winners};
  const auto launch = [&](const auto& call, auto lanes) {
    using Call = std::decay_t<decltype(call)>;
    using T = typename Call::Value;
    using Rows = typename Call::Rows;
    constexpr int kLanes = decltype(lanes)::count;
    // As many rows on their way as registers allow.
    constexpr int kSumRows = 2;
    constexpr int kMaxRows = sizeof(T) == 8 ? 1 : 2;
    if (pool == Pool::kMax) {
      const int64_t parts = (width + kLanes * kMaxColumns - 1) / (kLanes * kMaxColumns);
      device.launch(
          lookup_bag_max_forward_kernel<T, Rows, kLanes, kMaxRows>,
          device.blocks<kLanes>(bags.bags * parts), call, mutable_data<T>(out),
          mutable_data<int32_t>(winners));
      return;
    }
    const auto kernel = pool == Pool::kMean
                            ? lookup_bag_sum_forward_kernel<T, Rows, kLanes, kSumRows, true>
                            : lookup_bag_sum_forward_kernel<T, Rows, kLanes, kSumRows, false>;
    device.launch(kernel, device.blocks<kLanes>(bags.bags), call, mutable_data<T>(out));
  };
  dispatch_pooled(op, values, where, indices, per_sample_weights, limit, bags, padding_idx, launch);
  return {out, winners};
}

Tensor lookup_bag_weights_backward(
    const Tensor& grad,                  // [G, D]
    const Tensor& values,                // [E]
    const Tensor& index,                 // [blocks, 4] or [words]
    const Tensor& indices,               // [L]
    const Tensor& offsets,               // [G] or [G + 1]
    const std::optional<Tensor>& limit,  // [1] or [L]
    int64_t num_rows,
    int64_t granule,
    int64_t padding_idx,
    bool include_last_offset) {
  const char* op = "lookup_bag_weights_backward";
  check_matrix(op, "grad", grad);
  const RowsArgs where{index, num_rows, grad.size(1), granule, values.size(0)};
  check_lookup_bag_weights_backward(
      op, grad, values, indices, offsets, limit, where, include_last_offset);
  const int64_t lookups = indices.size(0);
  const Bags bags = bags_of(offsets, lookups, include_last_offset);
  const Device device(op, values, grad, index, indices, offsets, limit);
  const Tensor out = torch::stable::new_empty(values, {lookups});
  if (lookups == 0) return out;
  const auto launch = [&](const auto& call, auto lanes) {
    using Call = std::decay_t<decltype(call)>;
    using T = typename Call::Value;
    constexpr int kLanes = decltype(lanes)::count;
    device.launch(
        lookup_bag_weights_backward_kernel<T, typename Call::Rows, kLanes>,
        device.blocks<kLanes>(lookups), call, data<T>(grad), mutable_data<T>(out));
  };
  dispatch_pooled(op, values, where, indices, std::nullopt, limit, bags, padding_idx, launch);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(varemb, VAREMB_DEVICE_KEY, m) {
  m.impl("lookup_bag", TORCH_BOX(&lookup_bag));
  m.impl("lookup_bag_weights_backward", TORCH_BOX(&lookup_bag_weights_backward));
}

}  // namespace
}  // namespace varemb
