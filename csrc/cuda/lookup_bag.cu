// Pooled rows of different dims: contract, launch, registration.
#include "lookup_bag.cuh"
#include "runtime.cuh"

#include <tuple>

namespace varemb {
namespace {

template <typename T>
Pooled<T> pooled(
    const Tensor& values,
    const Table& table,
    const Integers& indices,
    const std::optional<Tensor>& weights,
    const Limit& limit,
    const Bags& bags,
    int64_t padding_idx) {
  return {data<T>(values), table, indices, data_or_null<T>(weights), limit, bags, padding_idx};
}

std::tuple<Tensor, Tensor> lookup_bag(
    const Tensor& values,                             // [E]
    const Tensor& index,                              // [blocks, 4]
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
  check_vector(op, "values", values);
  const Table table = table_of(op, index, num_rows, width, granule, values.size(0));
  const Integers rows = integers(op, "indices", indices);
  const int64_t lookups = indices.size(0);
  const Limit limits = limit_of(op, limit, lookups);
  const Pool pool = pool_of(op, mode);
  check(
      indices.scalar_type() == offsets.scalar_type(), op,
      ": indices and offsets must have the same dtype");
  check(
      lookups <= std::numeric_limits<int32_t>::max() || pool != Pool::kMax, op,
      ": max takes at most 2^31 - 1 indices");
  if (per_sample_weights) {
    check_vector(op, "per_sample_weights", *per_sample_weights);
    check(
        per_sample_weights->size(0) == lookups &&
            per_sample_weights->scalar_type() == values.scalar_type(),
        op, ": per_sample_weights must have one number per index, of the dtype of values");
  }
  const Bags bags = bags_of(op, offsets, lookups, include_last_offset);
  const Device device(op, values, index, indices, offsets, per_sample_weights, limit);
  const Tensor out = torch::stable::new_empty(values, {bags.bags, width});
  // [G, D] for max: which index gave each number; else empty
  const Tensor winners = torch::stable::new_empty(
      values, {pool == Pool::kMax ? bags.bags : 0, width}, std::make_optional(ScalarType::Int));
  if (bags.bags == 0 || width == 0) return {out, winners};
  dispatch_values(op, values, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    const auto call = pooled<T>(values, table, rows, per_sample_weights, limits, bags, padding_idx);
    // As many rows on their way as registers allow.
    constexpr int kSumRows = 2;
    constexpr int kMaxRows = sizeof(T) == 8 ? 1 : 2;
    dispatch_lanes(width, [&](auto lanes) {
      constexpr int kLanes = decltype(lanes)::count;
      if (pool == Pool::kMax) {
        const int64_t parts = (width + kLanes * kMaxColumns - 1) / (kLanes * kMaxColumns);
        device.launch(
            lookup_bag_max_forward_kernel<T, kLanes, kMaxRows>,
            device.blocks<kLanes>(bags.bags * parts), call, mutable_data<T>(out),
            mutable_data<int32_t>(winners));
        return;
      }
      const auto kernel = pool == Pool::kMean
                              ? lookup_bag_sum_forward_kernel<T, kLanes, kSumRows, true>
                              : lookup_bag_sum_forward_kernel<T, kLanes, kSumRows, false>;
      device.launch(kernel, device.blocks<kLanes>(bags.bags), call, mutable_data<T>(out));
    });
  });
  return {out, winners};
}

Tensor lookup_bag_weights_backward(
    const Tensor& grad,                  // [G, D]
    const Tensor& values,                // [E]
    const Tensor& index,                 // [blocks, 4]
    const Tensor& indices,               // [L]
    const Tensor& offsets,               // [G] or [G + 1]
    const std::optional<Tensor>& limit,  // [1] or [L]
    int64_t num_rows,
    int64_t granule,
    int64_t padding_idx,
    bool include_last_offset) {
  const char* op = "lookup_bag_weights_backward";
  check(
      grad.dim() == 2 && grad.is_contiguous() && grad.scalar_type() == values.scalar_type(), op,
      ": grad must be contiguous [bags, width], of the dtype of values");
  check_vector(op, "values", values);
  const int64_t width = grad.size(1);
  const Table table = table_of(op, index, num_rows, width, granule, values.size(0));
  const Integers rows = integers(op, "indices", indices);
  const int64_t lookups = indices.size(0);
  const Limit limits = limit_of(op, limit, lookups);
  check(
      indices.scalar_type() == offsets.scalar_type(), op,
      ": indices and offsets must have the same dtype");
  const Bags bags = bags_of(op, offsets, lookups, include_last_offset);
  check(
      bags.bags == grad.size(0), op, ": grad has ", grad.size(0), " bags, offsets describe ",
      bags.bags);
  const Device device(op, values, grad, index, indices, offsets, limit);
  const Tensor out = torch::stable::new_empty(values, {lookups});
  if (lookups == 0) return out;
  dispatch_values(op, values, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    const auto call = pooled<T>(values, table, rows, std::nullopt, limits, bags, padding_idx);
    dispatch_lanes(width, [&](auto lanes) {
      constexpr int kLanes = decltype(lanes)::count;
      device.launch(
          lookup_bag_weights_backward_kernel<T, kLanes>, device.blocks<kLanes>(lookups), call,
          data<T>(grad), mutable_data<T>(out));
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(varemb, VAREMB_DEVICE_KEY, m) {
  m.impl("lookup_bag", TORCH_BOX(&lookup_bag));
  m.impl("lookup_bag_weights_backward", TORCH_BOX(&lookup_bag_weights_backward));
}

}  // namespace
}  // namespace varemb
