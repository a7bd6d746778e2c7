// Rows of different dims times the matrix of their group, plus a bias: every row comes out O wide.
// Lookups are sorted by group, so that tiles of a few rows and a few registers of columns share
// each load of a matrix: six times the products of a load are six times the speed. Sums are made in
// the order of the lookups, so results do not depend on the threads.
#include "groups.h"

namespace varemb {
namespace {

// Rows of a tile; with kTileRegisters they and a line of the matrix fill the register file.
constexpr int kTileRows = 6;
constexpr int kTileRegisters = sizeof(FloatLanes) == 64 ? 4 : 2;
constexpr int64_t kTaskRows = 8 * kTileRows;
// Lookups whose gradients stay in the second-level cache while a group's matrix is summed.
constexpr int64_t kChunk = 512;
// Lookups between the request for a row's numbers and their use.
constexpr int64_t kAhead = 8;

// A register of at most n numbers; kWhole: n covers it.
template <bool kWhole, typename T, typename From>
[[gnu::always_inline]] inline Vec<T> load_part(const From* from, int64_t n) {
  if constexpr (kWhole) return Vec<T>::load(from);
  return Vec<T>::load(from, n);
}

// R rows x [dim] times matrix [dim, columns] plus bias, n of its columns: y[r] = bias + x[r]
// matrix.
template <int R, int V, bool kWhole, typename T>
void multiply_tile(
    const T* const* x,
    int64_t dim,
    const T* matrix,
    int64_t columns,
    const T* bias,
    T* const* y,
    int64_t n) {
  constexpr int64_t step = Vec<T>::kLanes;
  Vec<T> sums[R][V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    const Vec<T> first =
        bias == nullptr ? Vec<T>::zero() : load_part<kWhole, T>(bias + v * step, n - v * step);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[r][v] = first;
  }
  for (int64_t j = 0; j < dim; ++j, matrix += columns) {
    Vec<T> line[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) line[v] = load_part<kWhole, T>(matrix + v * step, n - v * step);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<T> number = Vec<T>::fill(static_cast<typename Wide<T>::type>(x[r][j]));
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[r][v] = fma(number, line[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[r][v].store(y[r] + v * step, n - v * step);
  }
}

// Calls body(v, whole) with how many registers n columns take, at most those of a tile, and
// whether they fill them.
template <typename T, typename Body>
void dispatch_columns(int64_t n, const Body& body) {
  using std::integral_constant;
  constexpr int64_t step = Vec<T>::kLanes;
  constexpr integral_constant<int, kTileRegisters> all;
  if (n >= kTileRegisters * step) return body(all, std::true_type{});
  if (n == step) return body(integral_constant<int, 1>{}, std::true_type{});
  if (n < step) return body(integral_constant<int, 1>{}, std::false_type{});
  body(all, std::false_type{});
}

// y [count rows, columns] = bias + x [count rows, dim] matrix [dim, columns].
template <typename T>
void multiply_rows(
    const T* const* x,
    int64_t count,
    int64_t dim,
    const T* matrix,
    int64_t columns,
    const T* bias,
    T* const* y) {
  for (int64_t from = 0; from < columns; from += kTileRegisters * Vec<T>::kLanes) {
    dispatch_columns<T>(columns - from, [&](auto registers, auto whole) {
      constexpr int V = decltype(registers)::value;
      constexpr bool kWhole = decltype(whole)::value;
      T* to[kTileRows];
      for (int64_t at = 0; at < count;) {
        const int64_t rows = std::min<int64_t>(kTileRows, count - at);
        for (int64_t r = 0; r < rows; ++r) to[r] = y[at + r] + from;
        for (int64_t r = at + rows; r < std::min(count, at + rows + kTileRows); ++r)
          prefetch_bytes(x[r], dim * static_cast<int64_t>(sizeof(T)));
        const T* const offset = bias == nullptr ? nullptr : bias + from;
        if (rows == kTileRows) {
          multiply_tile<kTileRows, V, kWhole>(
              x + at, dim, matrix + from, columns, offset, to, columns - from);
        } else {
          for (int64_t r = 0; r < rows; ++r)
            multiply_tile<1, V, kWhole>(
                x + at + r, dim, matrix + from, columns, offset, to + r, columns - from);
        }
        at += rows;
      }
    });
  }
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
    const Grouped<T> grouped = group_lookups<T>(op, args);
    const std::vector<Task> tasks = split_groups(grouped.groups, kTaskRows);
    T* const to = mutable_data<T>(out);
    torch::stable::parallel_for(
        0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
          T* y[kTaskRows];
          for (int64_t t = begin; t < end; ++t) {
            const auto& [group, first, last] = tasks[t];
            for (int64_t i = first; i < last; ++i)
              y[i - first] = to + grouped.positions[i] * outputs;
            multiply_rows(
                grouped.numbers.data() + first, last - first, group->dim,
                data<T>(weight) + group->matrix * outputs, outputs,
                data<T>(bias) + group->bias * outputs, y);
          }
        });
  });
  return out;
}

// to[l] [width] = grad[l] [O] times the transposed matrix of its group, zeros beyond its dim.
template <typename T>
void rows_backward(
    const Grouped<T>& grouped,
    const T* grad,
    const T* weight,
    int64_t outputs,
    T* to,
    int64_t width) {
  std::vector<T> transposed(static_cast<size_t>(grouped.dims * outputs));  // [O, dim] per group
  for (const Group& group : grouped.groups) {
    const T* const from = weight + group.matrix * outputs;
    T* const turned = transposed.data() + group.at * outputs;
    for (int64_t j = 0; j < group.dim; ++j) {
      for (int64_t k = 0; k < outputs; ++k) turned[k * group.dim + j] = from[j * outputs + k];
    }
  }
  const std::vector<Task> tasks = split_groups(grouped.groups, kTaskRows);
  torch::stable::parallel_for(
      0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
        const T* x[kTaskRows];
        T* y[kTaskRows];
        for (int64_t t = begin; t < end; ++t) {
          const auto& [group, first, last] = tasks[t];
          for (int64_t i = first; i < last; ++i) {
            x[i - first] = grad + grouped.positions[i] * outputs;
            y[i - first] = to + grouped.positions[i] * width;
            std::fill(y[i - first] + group->dim, y[i - first] + width, T(0));
          }
          multiply_rows<T>(
              x, last - first, outputs, transposed.data() + group->at * outputs, group->dim,
              nullptr, y);
        }
      });
}

// sums [R, n] += x^T grad over the lookups [begin, end), x the numbers [from, from + R) of their
// rows, or ones.
template <int R, int V, bool kWhole, bool kOnes, typename T>
void add_products(
    const Grouped<T>& grouped,
    int64_t begin,
    int64_t end,
    int64_t from,
    const T* grad,
    int64_t outputs,
    typename Wide<T>::type* sums,
    int64_t n) {
  using Acc = typename Wide<T>::type;
  constexpr int64_t step = Vec<T>::kLanes;
  Vec<T> tile[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v)
      tile[r][v] = load_part<kWhole, T>(sums + r * outputs + v * step, n - v * step);
  }
  for (int64_t i = begin; i < end; ++i) {
    if (i + kAhead < end) {
      prefetch(grouped.numbers[i + kAhead] + from);
      for (int v = 0; v < V; ++v)
        prefetch(grad + grouped.positions[i + kAhead] * outputs + v * step);
    }
    const T* const line = grad + grouped.positions[i] * outputs;
    const T* const numbers = grouped.numbers[i] + from;
    Vec<T> part[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) part[v] = load_part<kWhole, T>(line + v * step, n - v * step);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<T> number = Vec<T>::fill(kOnes ? Acc(1) : static_cast<Acc>(numbers[r]));
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) tile[r][v] = fma(number, part[v], tile[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) tile[r][v].store(sums + r * outputs + v * step, n - v * step);
  }
}

// Adds a chunk of a group's lookups to lines [first, last) of its sums [dim + 1, O], the last of
// which is the bias.
template <typename T>
void add_chunk(
    const Grouped<T>& grouped,
    const Group& group,
    int64_t begin,
    int64_t end,
    int64_t first,
    int64_t last,
    const T* grad,
    int64_t outputs,
    typename Wide<T>::type* sums) {
  for (int64_t from = 0; from < outputs; from += kTileRegisters * Vec<T>::kLanes) {
    dispatch_columns<T>(outputs - from, [&](auto registers, auto whole) {
      constexpr int V = decltype(registers)::value;
      constexpr bool kWhole = decltype(whole)::value;
      const int64_t n = outputs - from;
      for (int64_t s = first; s < last;) {
        auto* const to = sums + s * outputs + from;
        if (s == group.dim) {
          add_products<1, V, kWhole, true>(grouped, begin, end, 0, grad + from, outputs, to, n);
          s += 1;
        } else if (s + kTileRows <= std::min(last, group.dim)) {
          add_products<kTileRows, V, kWhole, false>(
              grouped, begin, end, s, grad + from, outputs, to, n);
          s += kTileRows;
        } else {
          add_products<1, V, kWhole, false>(grouped, begin, end, s, grad + from, outputs, to, n);
          s += 1;
        }
      }
    });
  }
}

// Each thread owns lines of the groups' sums and walks all lookups of a group in order, so a sum
// never depends on the threads; groups that share a matrix are added one after the other.
template <typename T>
void matrices_backward(
    const Grouped<T>& grouped,
    const T* grad,
    int64_t outputs,
    const Tensor& weight_grad,  // [S, O]
    const Tensor& bias_grad) {  // [C, O]
  using Acc = typename Wide<T>::type;
  const int64_t count = static_cast<int64_t>(grouped.groups.size());
  std::vector<Acc> sums(static_cast<size_t>((grouped.dims + count) * outputs), Acc(0));
  struct Lines {
    int64_t group, first, last;
  };
  std::vector<Lines> tasks;
  for (int64_t g = 0; g < count; ++g) {
    const int64_t lines = grouped.groups[g].dim + 1;
    for (int64_t s = 0; s < lines; s += 4 * kTileRows)
      tasks.push_back({g, s, std::min(lines, s + 4 * kTileRows)});
  }
  torch::stable::parallel_for(
      0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          const Group& group = grouped.groups[tasks[t].group];
          Acc* const to = sums.data() + (group.at + tasks[t].group) * outputs;
          for (int64_t i = group.begin; i < group.end; i += kChunk) {
            add_chunk(
                grouped, group, i, std::min(group.end, i + kChunk), tasks[t].first, tasks[t].last,
                grad, outputs, to);
          }
        }
      });
  std::vector<Acc> weights(static_cast<size_t>(weight_grad.size(0) * outputs), Acc(0));
  std::vector<Acc> biases(static_cast<size_t>(bias_grad.size(0) * outputs), Acc(0));
  const auto add = [](const Acc* from, int64_t n, Acc* to) {
    for (int64_t k = 0; k < n; ++k) to[k] += from[k];
  };
  for (int64_t g = 0; g < count; ++g) {
    const Group& group = grouped.groups[g];
    const Acc* const from = sums.data() + (group.at + g) * outputs;
    add(from, group.dim * outputs, weights.data() + group.matrix * outputs);
    add(from + group.dim * outputs, outputs, biases.data() + group.bias * outputs);
  }
  std::copy(weights.begin(), weights.end(), mutable_data<T>(weight_grad));
  std::copy(biases.begin(), biases.end(), mutable_data<T>(bias_grad));
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
    const Grouped<T> grouped = group_lookups<T>(op, args);
    const T* const from = data<T>(grad);
    rows_backward(grouped, from, data<T>(weight), outputs, mutable_data<T>(row_grad), width);
    matrices_backward(grouped, from, outputs, weight_grad, bias_grad);
  });
  return {row_grad, weight_grad, bias_grad};
}

STABLE_TORCH_LIBRARY_IMPL(varemb, CPU, m) {
  m.impl("lookup_linear", TORCH_BOX(&lookup_linear));
  m.impl("lookup_linear_backward", TORCH_BOX(&lookup_linear_backward));
}

}  // namespace
}  // namespace varemb
