// Optimizer steps on the rows that a batch touched: from a sparse gradient, or straight from the
// gradient of a lookup's output, which is then never stored.
#include "gradient.h"
#include "update.cuh"

namespace varemb {
namespace {

// Calls body(sink) with the sink of the algorithm.
template <typename T, typename Body>
void dispatch_sink(
    const Device& device,
    const StepArgs& step,
    Algorithm algorithm,
    const Body& body) {
  using Acc = WideOf<T>;
  T* const values = mutable_data<T>(step.values);
  Acc* const state1 = mutable_data_or_null<Acc>(step.state1);
  Acc* const state2 = mutable_data_or_null<Acc>(step.state2);
  const int64_t* const rounding = data_or_null<int64_t>(step.rounding);
  const Tensor memory = device.scratch<Constants<Acc>>(1);
  auto* const constants = mutable_data<Constants<Acc>>(memory);
  device.launch(constants_kernel<Acc>, 1, data<double>(step.hyper), constants);
  switch (algorithm) {
    case Algorithm::kSgd:
      return body(UpdateSink<T, Sgd>{values, state1, state2, constants, rounding});
    case Algorithm::kAdagrad:
      return body(UpdateSink<T, Adagrad>{values, state1, state2, constants, rounding});
    case Algorithm::kRowWiseAdagrad:
      return body(UpdateSink<T, RowWiseAdagrad>{values, state1, state2, constants, rounding});
    case Algorithm::kAdam:
      return body(UpdateSink<T, Adam>{values, state1, state2, constants, rounding});
  }
}

void update_(
    const Tensor& values,                   // [E], changed
    const std::optional<Tensor>& state1,    // [E] or [N], changed
    const std::optional<Tensor>& state2,    // [E], changed
    const Tensor& hyper,                    // [6]
    const std::optional<Tensor>& rounding,  // [2]
    const Tensor& index,                    // [blocks, 4], packed
    const Tensor& positions,  // [n] ascending: every touched row from its first number on
    const Tensor& grad,       // [n]
    int64_t num_rows,
    int64_t width,
    int64_t granule,
    int64_t algorithm) {
  const char* op = "update";
  const StepArgs step{values, state1, state2, hyper, rounding, num_rows, algorithm};
  const RowsArgs where{index, num_rows, width, granule, values.size(0)};
  const Algorithm rule = check_update(op, step, where, positions, grad);
  const int64_t count = positions.size(0);
  check(count <= kMost32, op, ": at most 2^31 - 1 touched numbers in a call, got ", count);
  const Device device(op, values, state1, state2, hyper, rounding, index, positions, grad);
  if (count == 0) return;
  const Table<PackedRows> table{packed_rows(where), values.size(0)};
  dispatch_values(op, values, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    dispatch_sink<T>(device, step, rule, [&](const auto& sink) {
      const SparseGradient<T> gradient{data<int64_t>(positions), data<T>(grad), table, count};
      const Tensor begins = device.scratch<uint8_t>(count);
      const Tensor places = device.scratch<int32_t>(count);
      const Tensor starts = device.scratch<int32_t>(count);
      const Tensor rows = device.scratch<int32_t>(1);
      device.launch(
          touched_row_kernel<T>, device.blocks<1>(count), gradient, mutable_data<uint8_t>(begins),
          mutable_data<int32_t>(places));
      device.select(
          data<int32_t>(places), data<uint8_t>(begins), mutable_data<int32_t>(starts),
          mutable_data<int32_t>(rows), count);
      dispatch_lanes(width, [&](auto lanes) {
        constexpr int kLanes = decltype(lanes)::count;
        using Sink = std::decay_t<decltype(sink)>;
        device.launch(
            update_kernel<T, kLanes, Sink>, device.blocks<kLanes>(std::min(count, num_rows)),
            gradient, data<int32_t>(starts), data<int32_t>(rows), sink);
      });
    });
  });
}

void coalesce_update_(
    const Tensor& values,                   // [E], changed
    const std::optional<Tensor>& state1,    // [E] or [N], changed
    const std::optional<Tensor>& state2,    // [E], changed
    const Tensor& hyper,                    // [6]
    const std::optional<Tensor>& rounding,  // [2]
    const Tensor& grad,                     // [L, D], or [G, D] with offsets
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
    int64_t algorithm) {
  const char* op = "coalesce_update";
  const StepArgs step{values, state1, state2, hyper, rounding, num_rows, algorithm};
  const GradientArgs args{
      grad,    index,    indices, offsets, per_sample_weights, limit,
      winners, num_rows, granule, mode,    padding_idx,        include_last_offset};
  const Algorithm rule = check_coalesce_update(op, step, args);
  const Device device(
      op, values, state1, state2, hyper, rounding, grad, index, indices, offsets,
      per_sample_weights, limit, winners);
  if (indices.size(0) == 0) return;
  dispatch_values(op, values, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    const Gradient<T> gradient(device, args, values.size(0));
    dispatch_sink<T>(device, step, rule, [&](const auto& sink) { gradient.sum_into(sink); });
  });
}

STABLE_TORCH_LIBRARY_IMPL(varemb, VAREMB_DEVICE_KEY, m) {
  m.impl("update_", TORCH_BOX(&update_));
  m.impl("coalesce_update_", TORCH_BOX(&coalesce_update_));
}

}  // namespace
}  // namespace varemb
