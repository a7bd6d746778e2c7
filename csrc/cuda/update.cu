// Optimizer steps on the rows that a batch touched: from a sparse gradient, or straight from the
// gradient of a lookup's output, which is then never stored.
#include "gradient.h"
#include "update.cuh"

namespace varemb {
namespace {

// What an optimizer step changes and what it needs besides the gradient.
struct Step {
  const Tensor& values;                   // [E]
  const std::optional<Tensor>& state1;    // [E] or [N]
  const std::optional<Tensor>& state2;    // [E]
  const Tensor& hyper;                    // [6]
  const std::optional<Tensor>& rounding;  // [2]
  Algorithm algorithm;
  int64_t num_rows;
};

template <typename Acc>
Acc* checked_state(
    const char* op,
    const char* name,
    const std::optional<Tensor>& state,
    bool is_needed,
    int64_t size) {
  check(
      state.has_value() == is_needed, op, ": ", name,
      is_needed ? " is missing" : " does not belong to this optimizer");
  if (!is_needed) return nullptr;
  check_vector(op, name, *state);
  constexpr auto dtype = sizeof(Acc) == sizeof(double) ? ScalarType::Double : ScalarType::Float;
  check(
      state->scalar_type() == dtype && state->size(0) == size, op, ": ", name, " must have ", size,
      " numbers of ", torch::headeronly::toString(dtype), ", got ", state->size(0));
  return mutable_data<Acc>(*state);
}

template <typename T>
const int64_t* checked_rounding(const char* op, const std::optional<Tensor>& rounding) {
  if (!rounding) return nullptr;
  check(
      sizeof(T) == 2, op, ": rounding needs values of float16 or bfloat16, got ",
      sizeof(T) == sizeof(float) ? "float32" : "float64");
  check(
      rounding->scalar_type() == ScalarType::Long && rounding->dim() == 1 &&
          rounding->size(0) == 2 && rounding->is_contiguous(),
      op, ": rounding must be int64 [2]: seed, offset");
  return data<int64_t>(*rounding);
}

// Calls body(sink) with the sink of the algorithm.
template <typename T, typename Body>
void dispatch_sink(const Device& device, const Step& step, const Body& body) {
  using Acc = WideOf<T>;
  const char* op = device.op;
  const Tensor& hyper = step.hyper;
  check(
      hyper.scalar_type() == ScalarType::Double && hyper.dim() == 1 && hyper.size(0) == 6 &&
          hyper.is_contiguous(),
      op, ": hyper must be float64 [6]: lr, weight_decay, eps, beta1, beta2, step");
  const bool is_row_wise = step.algorithm == Algorithm::kRowWiseAdagrad;
  const int64_t numbers = step.values.size(0);
  Acc* const state1 = checked_state<Acc>(
      op, "state1", step.state1, step.algorithm != Algorithm::kSgd,
      is_row_wise ? step.num_rows : numbers);
  Acc* const state2 =
      checked_state<Acc>(op, "state2", step.state2, step.algorithm == Algorithm::kAdam, numbers);
  const int64_t* const rounding = checked_rounding<T>(op, step.rounding);
  const Tensor memory = device.scratch<Constants<Acc>>(1);
  auto* const constants = mutable_data<Constants<Acc>>(memory);
  device.launch(constants_kernel<Acc>, 1, data<double>(hyper), constants);
  T* const values = mutable_data<T>(step.values);
  switch (step.algorithm) {
    case Algorithm::kSgd:
      return body(UpdateSink<T, Sgd>{values, state1, state2, constants, rounding});
    case Algorithm::kAdagrad:
      return body(UpdateSink<T, Adagrad>{values, state1, state2, constants, rounding});
    case Algorithm::kRowWiseAdagrad:
      return body(UpdateSink<T, RowWiseAdagrad>{values, state1, state2, constants, rounding});
    case Algorithm::kAdam:
      return body(UpdateSink<T, Adam>{values, state1, state2, constants, rounding});
  }
  fail(op, ": unknown algorithm ", static_cast<int64_t>(step.algorithm));
}

void update_(
    const Tensor& values,                   // [E], changed
    const std::optional<Tensor>& state1,    // [E] or [N], changed
    const std::optional<Tensor>& state2,    // [E], changed
    const Tensor& hyper,                    // [6]
    const std::optional<Tensor>& rounding,  // [2]
    const Tensor& index,                    // [blocks, 4]
    const Tensor& positions,  // [n] ascending: every touched row from its first number on
    const Tensor& grad,       // [n]
    int64_t num_rows,
    int64_t width,
    int64_t granule,
    int64_t algorithm) {
  const Device device("update", values, state1, state2, hyper, rounding, index, positions, grad);
  const char* op = device.op;
  check_vector(op, "values", values);
  check_vector(op, "positions", positions);
  check_vector(op, "grad", grad);
  check(positions.scalar_type() == ScalarType::Long, op, ": positions must be int64");
  const int64_t count = positions.size(0);
  check(grad.size(0) == count, op, ": grad and positions must have the same length");
  check(grad.scalar_type() == values.scalar_type(), op, ": grad must have the dtype of values");
  check(
      count <= std::numeric_limits<int32_t>::max(), op,
      ": at most 2^31 - 1 touched numbers in a call, got ", count);
  const Table table = table_of(op, index, num_rows, width, granule, values.size(0));
  const Step step{values,  state1, state2, hyper, rounding, static_cast<Algorithm>(algorithm),
                  num_rows};
  dispatch_values(op, values, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    dispatch_sink<T>(device, step, [&](const auto& sink) {
      if (count == 0) return;
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
  const Device device(
      "coalesce_update", values, state1, state2, hyper, rounding, grad, index, indices, offsets,
      per_sample_weights, limit, winners);
  check_vector(device.op, "values", values);
  check(
      grad.scalar_type() == values.scalar_type(), device.op,
      ": grad must have the dtype of values");
  const GradientArgs args{
      grad,    index,    indices, offsets, per_sample_weights, limit,
      winners, num_rows, granule, mode,    padding_idx,        include_last_offset};
  const Step step{values,  state1, state2, hyper, rounding, static_cast<Algorithm>(algorithm),
                  num_rows};
  dispatch_values(device.op, values, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    const Gradient<T> gradient(device, args, values.size(0));
    dispatch_sink<T>(device, step, [&](const auto& sink) { gradient.sum_into(sink); });
  });
}

STABLE_TORCH_LIBRARY_IMPL(varemb, VAREMB_DEVICE_KEY, m) {
  m.impl("update_", TORCH_BOX(&update_));
  m.impl("coalesce_update_", TORCH_BOX(&coalesce_update_));
}

}  // namespace
}  // namespace varemb
