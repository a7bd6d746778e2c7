// Sums of rows of different dims, held in registers.
#pragma once

#include "decode.h"
#include "vec.h"

namespace varemb {
namespace {

// What a sum needs beside its rows.
template <typename T>
struct SumOptions {
  using Acc = typename Wide<T>::type;
  const Acc* weights = nullptr;  // [count], or null: all one
  Acc scale = Acc(1);            // multiplies the finished sum
};

// For sums of rows that are not decoded meanwhile.
struct NothingAhead {
  void step() {}
};

// Adds weight * numbers [dim] to V registers. Whole registers are read without masks, because a
// masked load that misses the cache holds up the loads behind it; most lookups are of wide rows, so
// that case has its own branch. The sums must stay in registers: stored to the stack in every
// round, they would look to the processor like the rows that it loads ahead (their addresses agree
// in the low bits), and each load would wait for a store.
template <int V, bool kWeighted, typename T>
[[gnu::always_inline]] inline void add_row(
    Vec<T> (&sums)[V],
    const T* numbers,
    int64_t dim,
    typename Wide<T>::type weight) {
  using Register = Vec<T>;
  constexpr int64_t step = Register::kLanes;
  const Register factor = Register::fill(weight);
  if (dim >= V * step) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const Register row = Register::load(numbers + v * step);
      sums[v] = kWeighted ? fma(row, factor, sums[v]) : row + sums[v];
    }
  } else {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      if (v * step < dim) {
        const Register row = Register::load(numbers + v * step, dim - v * step);
        sums[v] = kWeighted ? fma(row, factor, sums[v]) : row + sums[v];
      }
    }
  }
}

// V registers' worth of columns of the sum, starting at column `from`.
template <int V, bool kWeighted, typename T, typename Out, typename Next>
void sum_columns(
    const Source<T>* rows,
    int64_t count,
    const SumOptions<T>& options,
    int64_t from,
    Out* to,
    int64_t width,
    Next& next) {
  using Register = Vec<T>;
  constexpr int64_t step = Register::kLanes;
  Register sums[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) sums[v] = Register::zero();
  for (int64_t i = 0; i < count; ++i) {
    next.step();
    const auto weight = kWeighted ? options.weights[i] : typename Wide<T>::type(1);
    add_row<V, kWeighted>(sums, rows[i].numbers + from, rows[i].dim - from, weight);
  }
  const Register scales = Register::fill(options.scale);
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v)
    (sums[v] * scales).store(to + from + v * step, width - from - v * step);
}

template <bool kWeighted, typename T, typename Out, typename Next>
void sum_blocks(
    const Source<T>* rows,
    int64_t count,
    const SumOptions<T>& options,
    Out* to,
    int64_t width,
    Next& next) {
  constexpr int64_t step = Vec<T>::kLanes;
  if (width <= step) return sum_columns<1, kWeighted>(rows, count, options, 0, to, width, next);
  if (width <= 2 * step) return sum_columns<2, kWeighted>(rows, count, options, 0, to, width, next);
  if (width <= 4 * step) return sum_columns<4, kWeighted>(rows, count, options, 0, to, width, next);
  sum_columns<8, kWeighted>(rows, count, options, 0, to, width, next);
  NothingAhead nothing;
  for (int64_t from = 8 * step; from < width; from += 8 * step) {
    sum_columns<8, kWeighted>(rows, count, options, from, to, width, nothing);
  }
}

// to[k] = scale * sum over rows of weight * numbers[k], k < width; a row adds nothing beyond its
// dim. next.step() is called once for every row.
template <typename T, typename Out, typename Next>
void sum_rows(
    const Source<T>* rows,
    int64_t count,
    const SumOptions<T>& options,
    Out* to,
    int64_t width,
    Next& next) {
  if (options.weights != nullptr) return sum_blocks<true>(rows, count, options, to, width, next);
  sum_blocks<false>(rows, count, options, to, width, next);
}

}  // namespace
}  // namespace varemb
