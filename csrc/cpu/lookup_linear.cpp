// Rows of different dims times the matrix of their group, plus a bias: every row comes out O wide.
// One row's output stays in registers while the row's numbers and the matrix rows stream by; a
// matrix of 64 x 128 floats fits the first-level cache, so this runs at the load ports' speed
// without a call per group.
#include "decode.h"
#include "dispatch.h"

#include <vector>

namespace varemb {
namespace {

// A row and its group's matrix: weight[matrix, matrix + dim) and bias[group].
template <typename T>
struct Projected {
  const T* numbers;
  int32_t dim;
  int32_t group;
  int64_t matrix;
};

// groups [F, D + 1, 2]: for a field (the position modulo F) and a dim, the first matrix row and the
// bias row; -1 for none.
template <typename T>
std::vector<Projected<T>> decode(const char* op, const LinearArgs& args) {
  const int64_t lookups = args.indices.size(0);
  const int64_t fields = args.groups.size(0);
  const int64_t* table = data<int64_t>(args.groups);
  std::vector<Projected<T>> out(static_cast<size_t>(lookups));
  BadIndex bad;
  dispatch_calls<T>(args.values, args.rows, args.indices, {}, -1, [&](const auto& call) {
    using Lookups = std::decay_t<decltype(call)>;
    bad = parallel_lookup(lookups, 2048, [&](int64_t begin, int64_t end) {
      Ahead<T, typename Lookups::Index, typename Lookups::Rows> ahead(call, begin, end);
      const Source<T>* decoded = ahead.start(end - begin);
      for (int64_t l = begin; l < end; ++l) {
        ahead.step();
        const Source<T>& row = decoded[l - begin];
        const int64_t* group = table + ((l % fields) * (call.rows.width + 1) + row.dim) * 2;
        out[l] = {
            row.numbers, static_cast<int32_t>(row.dim), static_cast<int32_t>(group[1]), group[0]};
      }
      return ahead.bad();
    });
  });
  bad.raise(op, args.rows.num_rows);
  for (size_t l = 0; l < out.size(); ++l) {
    const auto& row = out[l];
    check(
        row.matrix >= 0 && row.matrix + row.dim <= args.weight.size(0) && row.group >= 0 &&
            row.group < args.bias.size(0),
        op, ": no matrix for rows of dim ", row.dim, " in field ",
        static_cast<int64_t>(l) % fields);
  }
  return out;
}

template <int V, typename T>
void project_columns(
    const Projected<T>& row,
    const T* weight,
    const T* bias,
    int64_t from,
    T* to,
    int64_t outputs) {
  constexpr int64_t step = Vec<T>::kLanes;
  Vec<T> sums[V];
  for (int v = 0; v < V; ++v)
    sums[v] = Vec<T>::load(bias + from + v * step, outputs - from - v * step);
  const T* matrix = weight + row.matrix * outputs + from;
  for (int32_t j = 0; j < row.dim; ++j, matrix += outputs) {
    const Vec<T> number = Vec<T>::fill(static_cast<typename Wide<T>::type>(row.numbers[j]));
    for (int v = 0; v < V; ++v) {
      sums[v] = fma(number, Vec<T>::load(matrix + v * step, outputs - from - v * step), sums[v]);
    }
  }
  for (int v = 0; v < V; ++v) sums[v].store(to + from + v * step, outputs - from - v * step);
}

Tensor lookup_linear(
    const Tensor& values,   // [E]
    const Tensor& index,    // [blocks, 4] or [words]
    const Tensor& indices,  // [L]
    const Tensor& groups,   // [F, D + 1, 2]
    const Tensor& weight,   // [S, O]
    const Tensor& bias,     // [C, O]
    int64_t num_rows,
    int64_t width,
    int64_t granule) {
  const char* op = "lookup_linear";
  const LinearArgs args{values, indices, groups,
                        weight, bias,    {index, num_rows, width, granule, values.size(0)}};
  check_linear(op, args);
  check_last_row(op, args.rows);
  const int64_t lookups = indices.size(0);
  const int64_t outputs = weight.size(1);
  Tensor out = torch::stable::new_empty(values, {lookups, outputs});
  if (lookups == 0) return out;
  dispatch_values(op, values, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    const auto decoded = decode<T>(op, args);
    T* const to = mutable_data<T>(out);
    const T* const matrices = data<T>(weight);
    constexpr int64_t step = Vec<T>::kLanes;
    torch::stable::parallel_for(0, lookups, 256, [&](int64_t begin, int64_t end) {
      for (int64_t l = begin; l < end; ++l) {
        const T* offset = data<T>(bias) + decoded[l].group * outputs;
        int64_t from = 0;
        for (; outputs - from > step; from += 4 * step) {
          project_columns<4>(decoded[l], matrices, offset, from, to + l * outputs, outputs);
        }
        if (outputs > from)
          project_columns<1>(decoded[l], matrices, offset, from, to + l * outputs, outputs);
      }
    });
  });
  return out;
}

template <typename T>
void rows_backward(
    const std::vector<Projected<T>>& decoded,
    const T* grad,
    const T* weight,
    int64_t outputs,
    T* to,
    int64_t width) {
  const int64_t lookups = static_cast<int64_t>(decoded.size());
  torch::stable::parallel_for(0, lookups, 256, [&](int64_t begin, int64_t end) {
    for (int64_t l = begin; l < end; ++l) {
      const T* matrix = weight + decoded[l].matrix * outputs;
      for (int64_t j = 0; j < decoded[l].dim; ++j, matrix += outputs) {
        Vec<T> dot = Vec<T>::zero();
        for (int64_t k = 0; k < outputs; k += Vec<T>::kLanes) {
          dot =
              fma(Vec<T>::load(grad + l * outputs + k, outputs - k),
                  Vec<T>::load(matrix + k, outputs - k), dot);
        }
        to[l * width + j] = static_cast<T>(dot.sum());
      }
      std::fill(to + l * width + decoded[l].dim, to + (l + 1) * width, T(0));
    }
  });
}

// Adds scale * grad to a row of sums.
template <typename T>
void add_scaled(
    typename Wide<T>::type* sums,
    typename Wide<T>::type scale,
    const T* grad,
    int64_t outputs) {
  const Vec<T> factor = Vec<T>::fill(scale);
  for (int64_t k = 0; k < outputs; k += Vec<T>::kLanes) {
    fma(factor, Vec<T>::load(grad + k, outputs - k), Vec<T>::load(sums + k, outputs - k))
        .store(sums + k, outputs - k);
  }
}

// Each thread owns matrix rows (or bias rows) and walks all lookups in order, so a sum never
// depends on the threads.
template <typename T>
void weight_backward(
    const std::vector<Projected<T>>& decoded,
    const T* grad,
    int64_t outputs,
    int64_t matrix_rows,
    T* to) {
  using Acc = typename Wide<T>::type;
  std::vector<Acc> sums(static_cast<size_t>(matrix_rows * outputs), Acc(0));
  torch::stable::parallel_for(0, matrix_rows, 1, [&](int64_t begin, int64_t end) {
    for (size_t l = 0; l < decoded.size(); ++l) {
      const auto& row = decoded[l];
      const int64_t first = std::max(begin, row.matrix);
      const int64_t last = std::min(end, row.matrix + row.dim);
      for (int64_t s = first; s < last; ++s) {
        const Acc number = static_cast<Acc>(row.numbers[s - row.matrix]);
        add_scaled(
            sums.data() + s * outputs, number, grad + static_cast<int64_t>(l) * outputs, outputs);
      }
    }
  });
  std::copy(sums.begin(), sums.end(), to);
}

template <typename T>
void bias_backward(
    const std::vector<Projected<T>>& decoded,
    const T* grad,
    int64_t outputs,
    int64_t groups,
    T* to) {
  using Acc = typename Wide<T>::type;
  std::vector<Acc> sums(static_cast<size_t>(groups * outputs), Acc(0));
  torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    for (size_t l = 0; l < decoded.size(); ++l) {
      const int64_t group = decoded[l].group;
      if (group < begin || group >= end) continue;
      add_scaled(
          sums.data() + group * outputs, Acc(1), grad + static_cast<int64_t>(l) * outputs, outputs);
    }
  });
  std::copy(sums.begin(), sums.end(), to);
}

std::tuple<Tensor, Tensor, Tensor> lookup_linear_backward(
    const Tensor& grad,     // [L, O]
    const Tensor& values,   // [E]
    const Tensor& index,    // [blocks, 4] or [words]
    const Tensor& indices,  // [L]
    const Tensor& groups,   // [F, D + 1, 2]
    const Tensor& weight,   // [S, O]
    const Tensor& bias,     // [C, O]
    int64_t num_rows,
    int64_t width,
    int64_t granule) {
  const char* op = "lookup_linear_backward";
  const LinearArgs args{values, indices, groups,
                        weight, bias,    {index, num_rows, width, granule, values.size(0)}};
  check_linear(op, args);
  check_last_row(op, args.rows);
  const int64_t lookups = indices.size(0);
  const int64_t outputs = weight.size(1);
  check_linear_grad(op, args, grad);
  Tensor row_grad = torch::stable::new_empty(values, {lookups, width});
  Tensor weight_grad = torch::stable::new_empty(values, {weight.size(0), outputs});
  Tensor bias_grad = torch::stable::new_empty(values, {bias.size(0), outputs});
  dispatch_values(op, values, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    const auto decoded = decode<T>(op, args);
    const T* const from = data<T>(grad);
    rows_backward(decoded, from, data<T>(weight), outputs, mutable_data<T>(row_grad), width);
    weight_backward(decoded, from, outputs, weight.size(0), mutable_data<T>(weight_grad));
    bias_backward(decoded, from, outputs, bias.size(0), mutable_data<T>(bias_grad));
  });
  return {row_grad, weight_grad, bias_grad};
}

STABLE_TORCH_LIBRARY_IMPL(varemb, CPU, m) {
  m.impl("lookup_linear", TORCH_BOX(&lookup_linear));
  m.impl("lookup_linear_backward", TORCH_BOX(&lookup_linear_backward));
}

}  // namespace
}  // namespace varemb
