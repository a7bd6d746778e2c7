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

template <typename T, typename Index>
struct BagCall {
  Call<T, Index, PackedRows> lookups;
  Bags<Index> bags;
  const T* weights;  // [L] or null
};

// The largest number of each column, a row's missing columns counting as zeros, and which index
// gave it (the first of equals; NaN wins and stays). Indices equal to padding_idx do not compete.
template <typename T, typename Index>
void max_bag(
    const BagCall<T, Index>& call,
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
template <typename T, typename Index>
typename Wide<T>::type mean_scale(const BagCall<T, Index>& call, int64_t bag) {
  int64_t count = 0;
  for (int64_t p = call.bags.begin(bag); p < call.bags.end(bag); ++p) {
    count += static_cast<int64_t>(call.lookups.indices[p]) != call.lookups.padding_idx;
  }
  return
      typename Wide<T>::type(1) / static_cast<typename Wide<T>::type>(std::max<int64_t>(count, 1));
}

template <typename T, typename Index>
BadIndex pool_bags(
    const BagCall<T, Index>& call,
    Pool pool,
    T* out,
    int32_t* winners,
    int64_t begin,
    int64_t end) {
  using Acc = typename Wide<T>::type;
  const int64_t width = call.lookups.rows.width;
  Ahead<T, Index, PackedRows> ahead(call.lookups, call.bags.begin(begin), call.bags.end(end - 1));
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
  check_vector(op, "indices", indices);
  const PackedRows rows = packed_rows(op, index, num_rows, width, granule, values.size(0));
  const int64_t lookups = indices.size(0);
  check_limit(op, limit, lookups);
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
  Tensor out;
  Tensor winners;  // [G, D] for max: which index gave each number; else empty
  BadIndex bad;
  dispatch_index(op, "indices", indices, [&](auto index_type) {
    using Index = typename decltype(index_type)::type;
    const Bags<Index> bags = checked_bags<Index>(op, offsets, lookups, include_last_offset);
    out = torch::stable::new_empty(values, {bags.bags, width});
    winners = torch::stable::new_empty(
        values, {pool == Pool::kMax ? bags.bags : 0, width}, std::make_optional(ScalarType::Int));
    dispatch_values(op, values, [&](auto value_type) {
      using T = typename decltype(value_type)::type;
      const BagCall<T, Index> call{
          {data<T>(values), rows, data<Index>(indices), Limit::of(limit), padding_idx},
          bags,
          data_or_null<T>(per_sample_weights)};
      T* const to = mutable_data<T>(out);
      int32_t* const from = mutable_data<int32_t>(winners);
      bad = parallel_lookup(bags.bags, kGrain, [&](int64_t begin, int64_t end) {
        return pool_bags(call, pool, to, from, begin, end);
      });
    });
  });
  bad.raise(op, num_rows);
  return {out, winners};
}

// d loss / d weight of an index: its row times the gradient of its bag. Indices were checked by the
// forward pass, but this can be called directly, so they are checked again.
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
  check_vector(op, "indices", indices);
  const int64_t width = grad.size(1);
  const PackedRows rows = packed_rows(op, index, num_rows, width, granule, values.size(0));
  const int64_t lookups = indices.size(0);
  check_limit(op, limit, lookups);
  check(
      indices.scalar_type() == offsets.scalar_type(), op,
      ": indices and offsets must have the same dtype");
  Tensor out = torch::stable::new_zeros(values, {lookups});
  BadIndex bad;
  dispatch_index(op, "indices", indices, [&](auto index_type) {
    using Index = typename decltype(index_type)::type;
    const Bags<Index> bags = checked_bags<Index>(op, offsets, lookups, include_last_offset);
    check(
        bags.bags == grad.size(0), op, ": grad has ", grad.size(0), " bags, offsets describe ",
        bags.bags);
    dispatch_values(op, values, [&](auto value_type) {
      using T = typename decltype(value_type)::type;
      T* const to = mutable_data<T>(out);
      const Call<T, Index, PackedRows> call{
          data<T>(values), rows, data<Index>(indices), Limit::of(limit), padding_idx};
      bad = parallel_lookup(bags.bags, kGrain, [&](int64_t begin, int64_t end) {
        Ahead<T, Index, PackedRows> ahead(call, bags.begin(begin), bags.end(end - 1));
        for (int64_t bag = begin; bag < end; ++bag) {
          const int64_t first = bags.begin(bag);
          const int64_t last = bags.end(bag);
          const Source<T>* decoded = ahead.start(last - first);
          const T* bag_grad = data<T>(grad) + bag * width;
          for (int64_t p = first; p < last; ++p) {
            ahead.step();
            const Source<T>& row = decoded[p - first];
            Vec<T> dot = Vec<T>::zero();
            for (int64_t k = 0; k < row.dim; k += Vec<T>::kLanes) {
              dot =
                  fma(Vec<T>::load(row.numbers + k, row.dim - k),
                      Vec<T>::load(bag_grad + k, row.dim - k), dot);
            }
            to[p] = static_cast<T>(dot.sum());
          }
        }
        return ahead.bad();
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
