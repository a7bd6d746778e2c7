// Pooled rows of different dims: sum, mean or max over each bag, and the gradient of per-sample
// weights. Each thread owns whole bags; a bag is added in the order of its indices, so results do
// not depend on the threads.
#include "bags.h"
#include "pool.h"

#include <vector>

namespace varemb {
namespace {

constexpr int64_t kBufferedRows = 256;

// Fewest bags worth a second thread.
constexpr int64_t kGrain = 32;

template <typename T, typename Index, typename Rows>
struct BagCall {
  Call<T, Index, Rows> lookups;
  Bags<Index> bags;
  const T* weights;  // [L] or null
};

// The largest number of each column, a row's missing columns counting as zeros, and which index
// gave it (the first of equals; NaN wins and stays). Indices equal to padding_idx do not compete.
template <typename T, typename Index, typename Rows>
void max_bag(
    const BagCall<T, Index, Rows>& call,
    int64_t bag,
    const Source<T>* rows,
    T* to,
    int32_t* winners) {
  const int64_t first = call.bags.begin(bag);
  for (int64_t k = 0; k < call.lookups.rows.width; ++k) {
    T best = T(0);
    int32_t winner = -1;
    for (int64_t p = first; p < call.bags.end(bag); ++p) {
      if (static_cast<int64_t>(call.lookups.indices[p]) == call.lookups.padding_idx) continue;
      const Source<T>& row = rows[p - first];
      const T number = k < row.dim ? row.numbers[k] : T(0);
      const bool best_is_nan = best != best;
      if (winner < 0 || (!best_is_nan && (number > best || number != number))) {
        best = number;
        winner = static_cast<int32_t>(p);
      }
    }
    to[k] = best;
    winners[k] = winner;
  }
}

// 1 / number of rows that count, for the mean.
template <typename T, typename Index, typename Rows>
typename Wide<T>::type mean_scale(const BagCall<T, Index, Rows>& call, int64_t bag) {
  int64_t count = 0;
  for (int64_t p = call.bags.begin(bag); p < call.bags.end(bag); ++p) {
    count += static_cast<int64_t>(call.lookups.indices[p]) != call.lookups.padding_idx;
  }
  return
      typename Wide<T>::type(1) / static_cast<typename Wide<T>::type>(std::max<int64_t>(count, 1));
}

template <typename T, typename Index, typename Rows>
BadIndex pool_bags(
    const BagCall<T, Index, Rows>& call,
    Pool pool,
    T* out,
    int32_t* winners,
    int64_t begin,
    int64_t end) {
  using Acc = typename Wide<T>::type;
  const int64_t width = call.lookups.rows.width;
  Ahead<T, Index, Rows> ahead(call.lookups, call.bags.begin(begin), call.bags.end(end - 1));
  std::vector<Acc> weights;  // of a bag, in the type that sums are in
  for (int64_t bag = begin, stop = begin; bag < end; bag = stop) {
    // Small bags share a buffer of decoded rows.
    const int64_t first = call.bags.begin(bag);
    for (++stop; stop < end && call.bags.end(stop) - first <= kBufferedRows;) ++stop;
    const Source<T>* decoded = ahead.start(call.bags.end(stop - 1) - first);
    for (int64_t b = bag; b < stop; ++b) {
      const int64_t at = call.bags.begin(b);
      const int64_t count = call.bags.end(b) - at;
      const Source<T>* rows = decoded + (at - first);
      if (pool == Pool::kMax) {
        for (int64_t i = 0; i < count; ++i) ahead.step();
        max_bag(call, b, rows, out + b * width, winners + b * width);
        continue;
      }
      if (call.weights != nullptr) weights.assign(call.weights + at, call.weights + at + count);
      const Acc scale = pool == Pool::kMean ? mean_scale(call, b) : Acc(1);
      const SumOptions<T> options{call.weights == nullptr ? nullptr : weights.data(), scale};
      sum_rows<T>(rows, count, options, out + b * width, width, ahead);
    }
  }
  return ahead.bad();
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
  check_last_row(op, where);
  const int64_t lookups = indices.size(0);
  const int64_t count = offsets.size(0) - (include_last_offset ? 1 : 0);
  const Tensor out = torch::stable::new_empty(values, {count, width});
  // [G, D] for max: which index gave each number; else empty
  const Tensor winners = torch::stable::new_empty(
      values, {pool == Pool::kMax ? count : 0, width}, std::make_optional(ScalarType::Int));
  BadIndex bad;
  dispatch_values(op, values, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    dispatch_calls<T>(values, where, indices, limit, padding_idx, [&](const auto& looked_up) {
      using Lookups = std::decay_t<decltype(looked_up)>;
      using Index = typename Lookups::Index;
      const BagCall<T, Index, typename Lookups::Rows> call{
          looked_up, checked_bags<Index>(op, offsets, lookups, include_last_offset),
          data_or_null<T>(per_sample_weights)};
      T* const to = mutable_data<T>(out);
      int32_t* const from = mutable_data<int32_t>(winners);
      bad = parallel_lookup(count, kGrain, [&](int64_t begin, int64_t end) {
        return pool_bags(call, pool, to, from, begin, end);
      });
    });
  });
  bad.raise(op, num_rows);
  return {out, winners};
}

// To each index of the bags [begin, end), the product of its row with the gradient of its bag.
template <typename T, typename Index, typename Rows>
BadIndex dot_bags(
    const Call<T, Index, Rows>& call,
    const Bags<Index>& bags,
    const T* grad,
    T* out,
    int64_t begin,
    int64_t end) {
  const int64_t width = call.rows.width;
  Ahead<T, Index, Rows> ahead(call, bags.begin(begin), bags.end(end - 1));
  for (int64_t bag = begin; bag < end; ++bag) {
    const int64_t first = bags.begin(bag);
    const int64_t last = bags.end(bag);
    const Source<T>* decoded = ahead.start(last - first);
    const T* bag_grad = grad + bag * width;
    for (int64_t p = first; p < last; ++p) {
      ahead.step();
      const Source<T>& row = decoded[p - first];
      Vec<T> dot = Vec<T>::zero();
      for (int64_t k = 0; k < row.dim; k += Vec<T>::kLanes) {
        dot =
            fma(Vec<T>::load(row.numbers + k, row.dim - k), Vec<T>::load(bag_grad + k, row.dim - k),
                dot);
      }
      out[p] = static_cast<T>(dot.sum());
    }
  }
  return ahead.bad();
}

// d loss / d weight of an index: its row times the gradient of its bag. Indices were checked by the
// forward pass, but this can be called directly, so they are checked again.
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
  check_last_row(op, where);
  const int64_t lookups = indices.size(0);
  Tensor out = torch::stable::new_zeros(values, {lookups});
  BadIndex bad;
  dispatch_values(op, values, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    dispatch_calls<T>(values, where, indices, limit, padding_idx, [&](const auto& call) {
      using Index = typename std::decay_t<decltype(call)>::Index;
      const auto bags = checked_bags<Index>(op, offsets, lookups, include_last_offset);
      T* const to = mutable_data<T>(out);
      bad = parallel_lookup(bags.bags, kGrain, [&](int64_t begin, int64_t end) {
        return dot_bags(call, bags, data<T>(grad), to, begin, end);
      });
    });
  });
  bad.raise(op, num_rows);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(varemb, CPU, m) {
  m.impl("lookup_bag", TORCH_BOX(&lookup_bag));
  m.impl("lookup_bag_weights_backward", TORCH_BOX(&lookup_bag_weights_backward));
}

}  // namespace
}  // namespace varemb
