// Contracts of the native operations, one function each for every device. The Python fronts check
// first and speak to the user; these checks protect a direct call through torch.ops. What only the
// tensors' numbers tell is checked where they are read. std::invalid_argument becomes ValueError
// and std::out_of_range IndexError in Python.
#pragma once

#include "arguments.h"
#include "options.h"

#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace varemb {
namespace {

constexpr int64_t kMost32 = std::numeric_limits<int32_t>::max();

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

inline void check_vector(const char* op, const char* name, const Tensor& tensor) {
  check(
      tensor.dim() == 1 && tensor.is_contiguous(), op, ": ", name,
      " must be one-dimensional and contiguous");
}

inline void check_integers(const char* op, const char* name, const Tensor& tensor) {
  const auto dtype = tensor.scalar_type();
  check(
      dtype == ScalarType::Int || dtype == ScalarType::Long, op, ": ", name,
      " must be int32 or int64, got ", torch::headeronly::toString(dtype));
  check_vector(op, name, tensor);
}

inline bool is_paged(const Tensor& index) { return index.dim() == 1; }

// Words of a paged index that hold handles, two in each.
inline int64_t handle_words(int64_t num_rows) { return (num_rows + 1) / 2; }

// The index must say something of every row, so that no row number below num_rows reads past its
// end.
inline void check_rows(const char* op, const RowsArgs& args) {
  const auto& [index, num_rows, width, granule, numbers] = args;
  const bool is_packed = index.dim() == 2 && index.size(1) == 4;
  check(
      index.scalar_type() == ScalarType::Long && (is_packed || is_paged(index)) &&
          index.is_contiguous(),
      op, ": index must be a contiguous int64 tensor, packed [blocks, 4] or paged [words]");
  check(
      reinterpret_cast<uintptr_t>(index.const_data_ptr()) % 8 == 0, op,
      ": index must be aligned to 8 bytes");
  check(
      num_rows >= 0 && num_rows <= std::numeric_limits<uint32_t>::max(), op,
      ": a table holds at most 2^32 - 1 rows, got ", num_rows);
  if (is_packed) {
    check(
        num_rows <= index.size(0) * 24, op, ": index has ", index.size(0),
        " blocks of 24 rows, too few for ", num_rows, " rows");
    check(granule >= 1 && granule <= 16, op, ": granule must be in [1, 16], got ", granule);
  } else {
    check(
        handle_words(num_rows) <= index.size(0), op, ": index has ", index.size(0),
        " words, too few for the handles of ", num_rows, " rows");
    check(granule == 1, op, ": granule must be 1 in a paged table, got ", granule);
  }
  check(width >= 0 && width <= 2048, op, ": width must be in [0, 2048], got ", width);
}

// The sparse form needs rows that stand in the order of the table.
inline void check_packed(const char* op, const Tensor& index) {
  check(
      !is_paged(index), op,
      ": a paged table has no sparse gradients: use a fused optimizer or sparse=False");
}

inline void check_limit(const char* op, const std::optional<Tensor>& limit, int64_t lookups) {
  if (!limit) return;
  check(limit->scalar_type() == ScalarType::Int, op, ": limit must be int32");
  check_vector(op, "limit", *limit);
  check(
      limit->size(0) == 1 || limit->size(0) == lookups, op,
      ": limit must have one element or one per index (", lookups, "), got ", limit->size(0));
}

inline void check_lookup(
    const char* op,
    const Tensor& values,
    const Tensor& indices,
    const std::optional<Tensor>& limit,
    const RowsArgs& rows) {
  check_vector(op, "values", values);
  check_rows(op, rows);
  check_integers(op, "indices", indices);
  check_limit(op, limit, indices.size(0));
}

// Returns the number of bags; the offsets themselves are checked where they are read.
inline int64_t check_bags(
    const char* op,
    const Tensor& offsets,
    const Tensor& indices,
    bool include_last_offset) {
  check_integers(op, "offsets", offsets);
  check(
      indices.scalar_type() == offsets.scalar_type(), op,
      ": indices and offsets must have the same dtype");
  const int64_t count = offsets.size(0);
  check(!include_last_offset || count > 0, op, ": include_last_offset needs at least one offset");
  const int64_t bags = count - (include_last_offset ? 1 : 0);
  const int64_t lookups = indices.size(0);
  check(bags > 0 || lookups == 0, op, ": ", lookups, " indices need at least one bag");
  return bags;
}

inline Pool check_pool(
    const char* op,
    int64_t mode,
    const std::optional<Tensor>& per_sample_weights,
    const Tensor& like,  // of the dtype of the weights
    int64_t lookups) {
  check(mode >= 0 && mode <= 2, op, ": mode must be 0 (sum), 1 (mean) or 2 (max), got ", mode);
  const Pool pool = static_cast<Pool>(mode);
  if (per_sample_weights) {
    check(pool == Pool::kSum, op, ": per_sample_weights belong to sum, and only to sum");
    check_vector(op, "per_sample_weights", *per_sample_weights);
    check(
        per_sample_weights->size(0) == lookups &&
            per_sample_weights->scalar_type() == like.scalar_type(),
        op, ": per_sample_weights must have one number per index (", lookups,
        "), of the dtype of the rows, got ", per_sample_weights->size(0));
  }
  return pool;
}

inline Pool check_lookup_bag(
    const char* op,
    const Tensor& values,
    const Tensor& indices,
    const Tensor& offsets,
    const std::optional<Tensor>& per_sample_weights,
    const std::optional<Tensor>& limit,
    const RowsArgs& rows,
    int64_t mode,
    bool include_last_offset) {
  check_lookup(op, values, indices, limit, rows);
  check_bags(op, offsets, indices, include_last_offset);
  const int64_t lookups = indices.size(0);
  const Pool pool = check_pool(op, mode, per_sample_weights, values, lookups);
  check(
      lookups <= kMost32 || pool != Pool::kMax, op, ": max takes at most 2^31 - 1 indices, got ",
      lookups);
  return pool;
}

inline void check_bags_grad(const char* op, const Tensor& grad, int64_t bags) {
  check(bags == grad.size(0), op, ": grad has ", grad.size(0), " bags, offsets describe ", bags);
}

inline void check_matrix(const char* op, const char* name, const Tensor& matrix) {
  check(
      matrix.dim() == 2 && matrix.is_contiguous(), op, ": ", name,
      " must be contiguous, two-dimensional");
}

inline void check_lookup_bag_weights_backward(
    const char* op,
    const Tensor& grad,
    const Tensor& values,
    const Tensor& indices,
    const Tensor& offsets,
    const std::optional<Tensor>& limit,
    const RowsArgs& rows,
    bool include_last_offset) {
  check_lookup(op, values, indices, limit, rows);
  check(grad.scalar_type() == values.scalar_type(), op, ": grad must have the dtype of values");
  check_bags_grad(op, grad, check_bags(op, offsets, indices, include_last_offset));
}

inline void check_linear(const char* op, const LinearArgs& args) {
  const auto& [values, indices, groups, weight, bias, rows] = args;
  check_lookup(op, values, indices, std::nullopt, rows);
  check(
      groups.scalar_type() == ScalarType::Long && groups.dim() == 3 && groups.is_contiguous() &&
          groups.size(0) > 0 && groups.size(1) == rows.width + 1 && groups.size(2) == 2,
      op, ": groups must be a contiguous int64 tensor [fields, width + 1, 2]");
  check_matrix(op, "weight", weight);
  check_matrix(op, "bias", bias);
  check(weight.size(1) == bias.size(1), op, ": weight [S, O] and bias [C, O] must have the same O");
  check(
      weight.scalar_type() == values.scalar_type() && bias.scalar_type() == values.scalar_type(),
      op, ": weight and bias must have the dtype of values");
}

inline void check_linear_grad(const char* op, const LinearArgs& args, const Tensor& grad) {
  const int64_t lookups = args.indices.size(0);
  const int64_t outputs = args.weight.size(1);
  check_matrix(op, "grad", grad);
  check(
      grad.size(0) == lookups && grad.size(1) == outputs &&
          grad.scalar_type() == args.values.scalar_type(),
      op, ": grad must be [", lookups, ", ", outputs, "], of the dtype of values");
}

inline void check_gradient(const char* op, const GradientArgs& args, int64_t numbers) {
  check_matrix(op, "grad", args.grad);
  check_rows(op, args.rows(numbers));
  check_integers(op, "indices", args.indices);
  const int64_t lookups = args.indices.size(0);
  check_limit(op, args.limit, lookups);
  if (!args.offsets) {
    check(
        !args.per_sample_weights && !args.winners, op,
        ": per_sample_weights and winners belong to bags");
    check(
        args.grad.size(0) == lookups, op, ": grad has ", args.grad.size(0), " rows for ", lookups,
        " indices");
    return;
  }
  const int64_t bags = check_bags(op, *args.offsets, args.indices, args.include_last_offset);
  check(bags <= kMost32, op, ": at most 2^31 - 1 bags in a call, got ", bags);
  check_bags_grad(op, args.grad, bags);
  const Pool pool = check_pool(op, args.mode, args.per_sample_weights, args.grad, lookups);
  check(
      (pool == Pool::kMax) == args.winners.has_value(), op,
      ": winners belong to max, and only to max");
  if (!args.winners) return;
  check_matrix(op, "winners", *args.winners);
  check(
      args.winners->scalar_type() == ScalarType::Int && args.winners->size(0) == bags &&
          args.winners->size(1) == args.grad.size(1),
      op, ": winners must be int32 of the shape of grad");
}

inline void check_state(
    const char* op,
    const char* name,
    const std::optional<Tensor>& state,
    bool is_needed,
    int64_t size,
    ScalarType dtype) {
  check(
      state.has_value() == is_needed, op, ": ", name,
      is_needed ? " is missing" : " does not belong to this optimizer");
  if (!is_needed) return;
  check_vector(op, name, *state);
  check(
      state->scalar_type() == dtype && state->size(0) == size, op, ": ", name, " must have ", size,
      " numbers of ", torch::headeronly::toString(dtype), ", got ", state->size(0));
}

inline Algorithm check_step(const char* op, const StepArgs& args) {
  check_vector(op, "values", args.values);
  check(args.algorithm >= 0 && args.algorithm <= 3, op, ": unknown algorithm ", args.algorithm);
  const Algorithm algorithm = static_cast<Algorithm>(args.algorithm);
  check_vector(op, "hyper", args.hyper);
  check(
      args.hyper.scalar_type() == ScalarType::Double && args.hyper.size(0) == 6, op,
      ": hyper must be float64 [6]: lr, weight_decay, eps, beta1, beta2, step");
  const auto dtype = args.values.scalar_type();
  const auto wide = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const int64_t numbers = args.values.size(0);
  const bool is_row_wise = algorithm == Algorithm::kRowWiseAdagrad;
  check_state(
      op, "state1", args.state1, algorithm != Algorithm::kSgd,
      is_row_wise ? args.num_rows : numbers, wide);
  check_state(op, "state2", args.state2, algorithm == Algorithm::kAdam, numbers, wide);
  if (!args.rounding) return algorithm;
  check(
      dtype == ScalarType::Half || dtype == ScalarType::BFloat16, op,
      ": rounding needs values of float16 or bfloat16, got ",
      dtype == ScalarType::Float ? "float32" : "float64");
  check_vector(op, "rounding", *args.rounding);
  check(
      args.rounding->scalar_type() == ScalarType::Long && args.rounding->size(0) == 2, op,
      ": rounding must be int64 [2]: seed, offset");
  return algorithm;
}

inline Algorithm check_update(
    const char* op,
    const StepArgs& step,
    const RowsArgs& rows,
    const Tensor& positions,
    const Tensor& grad) {
  const Algorithm algorithm = check_step(op, step);
  check_rows(op, rows);
  check_packed(op, rows.index);
  check_vector(op, "positions", positions);
  check_vector(op, "grad", grad);
  check(positions.scalar_type() == ScalarType::Long, op, ": positions must be int64");
  check(grad.size(0) == positions.size(0), op, ": grad and positions must have the same length");
  check(
      grad.scalar_type() == step.values.scalar_type(), op, ": grad must have the dtype of values");
  return algorithm;
}

inline Algorithm check_coalesce_update(
    const char* op,
    const StepArgs& step,
    const GradientArgs& gradient) {
  const Algorithm algorithm = check_step(op, step);
  check_gradient(op, gradient, step.values.size(0));
  check(
      gradient.grad.scalar_type() == step.values.scalar_type(), op,
      ": grad must have the dtype of values");
  return algorithm;
}

// Returns the bytes of a number.
inline int64_t check_repack(
    const char* op,
    const Tensor& out,
    const Tensor& values,
    const Tensor& moves) {
  check_vector(op, "out", out);
  check_vector(op, "values", values);
  check(out.scalar_type() == values.scalar_type(), op, ": out must have the dtype of values");
  check(
      moves.scalar_type() == ScalarType::Long && moves.dim() == 2 && moves.size(1) == 4 &&
          moves.is_contiguous(),
      op, ": moves must be a contiguous int64 tensor [M, 4]: source, target, kept, dim");
  const int64_t bytes = values.element_size();
  check(
      bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8, op,
      ": values must have numbers of 1, 2, 4 or 8 bytes, got ",
      torch::headeronly::toString(values.scalar_type()));
  return bytes;
}

}  // namespace
}  // namespace varemb
