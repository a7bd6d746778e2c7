// Optimizer steps on rows: values and state are read and written once. Kernels only: no torch.
#pragma once

#include "../options.h"
#include "../rounding.h"
#include "gradient.cuh"

#include <cmath>
#include <type_traits>

namespace varemb {
namespace {

// What a step multiplies with, made from hyper once a call so that no thread computes a power.
template <typename Acc>
struct Constants {
  Acc lr, decay, eps, beta1, rest1, beta2, rest2;
  Acc rate;  // lr / (1 - beta1^step)
  Acc root;  // 1 / sqrt(1 - beta2^step)
};

// One thread. hyper [6]: lr, weight_decay, eps, beta1, beta2, step.
template <typename Acc>
__global__ void constants_kernel(const double* __restrict__ hyper, Constants<Acc>* out) {
  if (blockIdx.x != 0 || threadIdx.x != 0) return;
  const double beta1 = hyper[3], beta2 = hyper[4], step = hyper[5];
  out->lr = static_cast<Acc>(hyper[0]);
  out->decay = static_cast<Acc>(hyper[1]);
  out->eps = static_cast<Acc>(hyper[2]);
  out->beta1 = static_cast<Acc>(beta1);
  out->rest1 = static_cast<Acc>(1 - beta1);
  out->beta2 = static_cast<Acc>(beta2);
  out->rest2 = static_cast<Acc>(1 - beta2);
  out->rate = static_cast<Acc>(hyper[0] / (1 - pow(beta1, step)));
  out->root = static_cast<Acc>(1 / sqrt(1 - pow(beta2, step)));
}

// p <- p - lr g
template <typename Acc>
struct Sgd {
  static constexpr int kStates = 0;
  __device__ static Acc step(const Constants<Acc>& c, Acc value, Acc g, Acc&, Acc&) {
    return value - c.lr * g;
  }
};

// s <- s + g^2,  p <- p - lr g / (sqrt(s) + eps)   (Duchi et al. 2011; torch.optim.Adagrad)
template <typename Acc>
struct Adagrad {
  static constexpr int kStates = 1;
  __device__ static Acc step(const Constants<Acc>& c, Acc value, Acc g, Acc& sum, Acc&) {
    sum = multiply_add(g, g, sum);
    return value - c.lr * g / (sqrt(sum) + c.eps);
  }
};

// The same with one s per row, the mean of g^2 over the row's own dim (FBGEMM's rule); `sum` is the
// row's, already advanced.
template <typename Acc>
struct RowWiseAdagrad {
  static constexpr int kStates = 0;
  __device__ static Acc step(const Constants<Acc>& c, Acc value, Acc g, Acc& sum, Acc&) {
    return value - c.lr / (sqrt(sum) + c.eps) * g;
  }
};

// m <- b1 m + (1-b1) g,  v <- b2 v + (1-b2) g^2,  p <- p - lr mhat / (sqrt(vhat) + eps)   (Kingma &
// Ba 2015, Alg. 1), on the rows of the batch only
template <typename Acc>
struct Adam {
  static constexpr int kStates = 2;
  __device__ static Acc step(const Constants<Acc>& c, Acc value, Acc g, Acc& m, Acc& v) {
    m = multiply_add(c.rest1, g, c.beta1 * m);
    v = multiply_add(c.rest2, g * g, c.beta2 * v);
    return value - c.rate * m / (sqrt(v) * c.root + c.eps);
  }
};

// To the stored type: nearest, or stochastic by the number's place.
// `words` are those of the four places that position lies in, made when the first of them, or of a
// pack, comes.
template <typename T>
__device__ T rounded(
    WideOf<T> number,
    const int64_t* rounding,
    int64_t position,
    bool is_first,
    PhiloxWords& words) {
  if constexpr (sizeof(T) == 2) {
    if (rounding != nullptr) {
      if (is_first || position % 4 == 0)
        words = random_words(rounding[0], rounding[1], position / 4);
      const int at = static_cast<int>(position % 4);
      // Chosen by comparison: an index would put the words into memory.
      const uint32_t low = at == 0 ? words.word[0] : words.word[1];
      const uint32_t high = at == 2 ? words.word[2] : words.word[3];
      const uint32_t word = at < 2 ? low : high;
      if constexpr (std::is_same_v<T, __nv_bfloat16>)
        return __ushort_as_bfloat16(round_bfloat16(number, word));
      else
        return __ushort_as_half(round_float16(number, word));
    }
  }
  return narrow<T>(number);
}

// What a rule changes of a table: numbers and state, all flat and behind the same offset, or one
// state number per row.
template <typename T, template <typename> typename Rule>
struct UpdateSink {
  using Acc = WideOf<T>;
  static constexpr bool kIsRowWise = std::is_same_v<Rule<Acc>, RowWiseAdagrad<Acc>>;

  T* values;    // [E]
  Acc* state1;  // [E], [N] for row-wise Adagrad, null for SGD
  Acc* state2;  // [E] for Adam
  const Constants<Acc>* constants;
  const int64_t* rounding;  // [2] seed and offset, or null

  template <int kLanes>
  __device__ void operator()(
      const Group<kLanes>& group,
      int64_t,
      int64_t row,
      int64_t offset,
      int dim,
      const Tile<T, kLanes>& sum) const {
    if (dim == 0) return;
    using Columns = Tile<T, kLanes>;
    const Constants<Acc> c = *constants;
    Acc row_state = 0;
    if constexpr (kIsRowWise) {
      Acc squares = 0;
      Columns::each(group.lane, dim, [&](int pack, int column) {
        const Pack<T> stored = load_pack(values + offset + column, dim - column);
#pragma unroll
        for (int v = 0; v < Pack<T>::kSize; ++v) {
          // Beyond the dim both are zeros.
          const Acc g = multiply_add(
              c.decay, widen(stored.numbers[v]), sum.numbers[pack * Pack<T>::kSize + v]);
          squares = multiply_add(g, g, squares);
        }
      });
      // One lane reads and writes the row's state: no lane can read what another has written.
      const Acc before = group.lane == 0 ? state1[row] : Acc(0);
      row_state = group.sum(before) + group.sum(squares) / static_cast<Acc>(dim);
      if (group.lane == 0) state1[row] = row_state;
    }
    Columns::each(group.lane, dim, [&](int pack, int column) {
      change(offset + column, dim - column, row_state, c, sum.numbers + pack * Pack<T>::kSize);
    });
  }

 private:
  // One pack of the row; row_state is the row's own for row-wise Adagrad. The values are loaded
  // again: they are in the nearest cache, and keeping them would cost 16 registers.
  __device__ void change(
      int64_t at,
      int count,
      Acc row_state,
      const Constants<Acc>& c,
      const Acc* gradient) const {
    constexpr int kSize = Pack<T>::kSize;
    const Pack<T> stored = load_pack(values + at, count);
    Acc first[kSize], second[kSize];
    load_state<Rule<Acc>::kStates >= 1>(state1, at, count, row_state, first);
    load_state<Rule<Acc>::kStates >= 2>(state2, at, count, Acc(0), second);
    Pack<T> changed;
    PhiloxWords words{};
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      const Acc value = widen(stored.numbers[v]);
      const Acc g = multiply_add(c.decay, value, gradient[v]);
      const Acc next = Rule<Acc>::step(c, value, g, first[v], second[v]);
      changed.numbers[v] = rounded<T>(next, rounding, at + v, v == 0, words);
    }
    store_state<Rule<Acc>::kStates >= 1>(state1, at, count, first);
    store_state<Rule<Acc>::kStates >= 2>(state2, at, count, second);
    store_pack(values + at, count, changed);
  }

  // State is as wide as the arithmetic: a pack of 16-bit numbers has two packs of it.
  template <bool kHas>
  __device__ static void load_state(
      const Acc* state,
      int64_t at,
      int count,
      Acc other,
      Acc* numbers) {
#pragma unroll
    for (int v = 0; v < Pack<T>::kSize; v += Pack<Acc>::kSize) {
      Pack<Acc> part;
      if constexpr (kHas) part = load_pack(state + at + v, count - v);
#pragma unroll
      for (int i = 0; i < Pack<Acc>::kSize; ++i) numbers[v + i] = kHas ? part.numbers[i] : other;
    }
  }
  template <bool kHas>
  __device__ static void store_state(Acc* state, int64_t at, int count, const Acc* numbers) {
    if constexpr (kHas) {
#pragma unroll
      for (int v = 0; v < Pack<T>::kSize; v += Pack<Acc>::kSize) {
        Pack<Acc> part;
#pragma unroll
        for (int i = 0; i < Pack<Acc>::kSize; ++i) part.numbers[i] = numbers[v + i];
        store_pack(state + at + v, count - v, part);
      }
    }
  }
};

// A sparse gradient: positions [n] ascending, of every touched row its numbers from the first on.
template <typename T>
struct SparseGradient {
  const int64_t* positions;  // [n]
  const T* numbers;          // [n]
  Table<PackedRows> table;
  int64_t count;
};

// One thread per touched number: whether its row begins there, and how many numbers there are.
template <typename T>
__global__ void __launch_bounds__(kThreads) touched_row_kernel(
    SparseGradient<T> gradient,
    uint8_t* __restrict__ begins,    // [n]
    int32_t* __restrict__ places) {  // [n]
  const Group<1> group;
  for (int64_t i = group.number; i < gradient.count; i += group.count) {
    const int64_t position = gradient.positions[i];
    VAREMB_DEVICE_ASSERT(
        position >= 0 && position < gradient.table.numbers && "a position is outside the values");
    const Row where = gradient.table(gradient.table.rows.row_at(position));
    begins[i] = where.offset == position;
    VAREMB_DEVICE_ASSERT(
        (begins[i] != 0 || (i > 0 && gradient.positions[i - 1] == position - 1)) &&
        "a row's gradient must begin at its first number");
    VAREMB_DEVICE_ASSERT(
        (i == 0 || gradient.positions[i - 1] < position) &&
        "positions must be distinct and ascending");
    places[i] = static_cast<int32_t>(i);
  }
}

// A group of lanes per touched row: gives its gradient to the sink. Deterministic.
template <typename T, int kLanes, typename Sink>
__global__ void __launch_bounds__(kThreads) update_kernel(
    SparseGradient<T> gradient,
    const int32_t* __restrict__ starts,  // [rows]
    const int32_t* __restrict__ rows,    // [1]
    Sink sink) {
  const Group<kLanes> group;
  const int64_t count = *rows;
  for (int64_t i = group.number; i < count; i += group.count) {
    const int64_t begin = starts[i];
    const int64_t end = i + 1 < count ? starts[i + 1] : gradient.count;
    const int64_t row = gradient.table.rows.row_at(gradient.positions[begin]);
    const Row where = gradient.table(row);
    VAREMB_DEVICE_ASSERT(end - begin <= where.dim && "a gradient is wider than its row");
    const int dim = static_cast<int>(end - begin);
    Tile<T, kLanes> sum;
    sum.fill(0);
    Tile<T, kLanes>::each(group.lane, dim, [&](int pack, int column) {
      const Pack<T> terms = load_pack(gradient.numbers + begin + column, dim - column);
#pragma unroll
      for (int v = 0; v < Pack<T>::kSize; ++v)
        sum.numbers[pack * Pack<T>::kSize + v] = widen(terms.numbers[v]);
    });
    sink(group, i, row, where.offset, dim, sum);
  }
}

}  // namespace
}  // namespace varemb
