// The arguments that operations share, as they come from the dispatcher.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

namespace varemb {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Where a table's rows are, as an operation gets it.
struct RowsArgs {
  const Tensor& index;  // [blocks, 4], or paged [handle words + chunks]
  int64_t num_rows;
  int64_t width;
  int64_t granule;
  int64_t numbers;  // E, of the flat buffer that the index points into
};

// The arguments that every gradient operation takes.
struct GradientArgs {
  const Tensor& grad;                               // [L, D], or [G, D] with offsets
  const Tensor& index;                              // as in RowsArgs
  const Tensor& indices;                            // [L]
  const std::optional<Tensor>& offsets;             // [G] or [G + 1]: a pooled lookup
  const std::optional<Tensor>& per_sample_weights;  // [L], sum only
  const std::optional<Tensor>& limit;               // [1] or [L]
  const std::optional<Tensor>& winners;             // [G, D], max only
  int64_t num_rows;
  int64_t granule;
  int64_t mode;
  int64_t padding_idx;
  bool include_last_offset;

  RowsArgs rows(int64_t numbers) const { return {index, num_rows, grad.size(1), granule, numbers}; }
};

// What an optimizer step changes and what it needs besides the gradient.
struct StepArgs {
  const Tensor& values;                   // [E]
  const std::optional<Tensor>& state1;    // [E] or [N]
  const std::optional<Tensor>& state2;    // [E]
  const Tensor& hyper;                    // [6]
  const std::optional<Tensor>& rounding;  // [2]
  int64_t num_rows;
  int64_t algorithm;
};

// The arguments that both directions of lookup_linear take.
struct LinearArgs {
  const Tensor& values;   // [E]
  const Tensor& indices;  // [L]
  const Tensor& groups;   // [F, D + 1, 2]
  const Tensor& weight;   // [S, O]
  const Tensor& bias;     // [C, O]
  RowsArgs rows;
};

}  // namespace
}  // namespace varemb
