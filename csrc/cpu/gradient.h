// The gradient of a call, one distinct row after another: what coalesce stores and update applies.
// A row is summed by one thread in the order of its lookups, so results do not depend on the
// threads.
#pragma once

#include "bags.h"
#include "pool.h"
#include "sort.h"

#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

namespace varemb {
namespace {

// One distinct row and its lookups, keys[begin, end).
struct Run {
  int64_t row;
  Row where;
  int64_t begin;
  int64_t end;
  int32_t dim;  // numbers that any of its lookups may train
};

template <typename T>
class Gradient {
 public:
  using Acc = typename Wide<T>::type;

  // The arguments must have been checked.
  Gradient(const char* op, const GradientArgs& args, int64_t numbers)
      : grad_(data<T>(args.grad)), width_(args.grad.size(1)) {
    const RowsArgs where = args.rows(numbers);
    check_last_row(op, where);
    rows_ = either_rows(where);
    const int64_t lookups = args.indices.size(0);
    limit_ = limit_of(args.limit);
    weights_ = data_or_null<T>(args.per_sample_weights);
    winners_ = data_or_null<int32_t>(args.winners);
    // What a lookup's place among all others does not decide, its bag does.
    const bool tag_bags =
        weights_ == nullptr && winners_ == nullptr && limit_.stride == 0 && !is_paged(args.index);
    dispatch_index(args.indices, [&](auto index_type) {
      using Index = typename decltype(index_type)::type;
      const Index* const indices = data<Index>(args.indices);
      const auto sort = [&](int64_t count, const Bags<Index>* tags) {
        sorted_ = sort_lookups(op, indices, count, args.num_rows, args.padding_idx, tags);
      };
      if (!args.offsets) return sort(lookups, nullptr);
      const auto bags = checked_bags<Index>(op, *args.offsets, lookups, args.include_last_offset);
      // An included last offset may leave some lookups out.
      const int64_t in_bags = bags.bags > 0 ? bags.end(bags.bags - 1) : 0;
      if (static_cast<Pool>(args.mode) == Pool::kMean) read_scales(bags, indices, args.padding_idx);
      if (tag_bags) return sort(in_bags, &bags);
      read_bags(bags);
      sort(in_bags, nullptr);
    });
    if (is_paged(args.index)) refuse_absent(op);
  }

  int64_t chunks() const { return (sorted_.count + kChunk - 1) / kChunk; }

  // Calls visit(run) for the distinct rows whose first lookup lies in the chunk.
  template <typename Visit>
  void each_run(int64_t chunk, const Visit& visit) const {
    int64_t at = chunk * kChunk;
    const int64_t end = std::min(sorted_.count, at + kChunk);
    while (at > 0 && at < end && row_of(key(at)) == row_of(key(at - 1))) ++at;
    while (at < end) {
      const Run run = run_at(at);
      visit(run);
      at = run.end;
    }
  }

  // Calls apply(run, sum [run.dim]) for the chunk's rows, `ahead` runs after prefetch(run).
  template <typename Prefetch, typename Apply>
  void each_sum(int64_t chunk, const Prefetch& prefetch, const Apply& apply) const {
    Run ring[kAhead];
    int64_t seen = 0;
    Terms terms;
    alignas(64) Acc sum[kMaxWidth];
    each_run(chunk, [&](const Run& run) {
      Run& slot = ring[seen % kAhead];
      if (seen >= kAhead) apply(slot, sum_of(slot, terms, sum));
      slot = run;
      prefetch(run);
      prefetch_gradient(run);
      ++seen;
    });
    for (int64_t i = std::max<int64_t>(0, seen - kAhead); i < seen; ++i) {
      const Run& slot = ring[i % kAhead];
      apply(slot, sum_of(slot, terms, sum));
    }
  }

 private:
  static constexpr int64_t kChunk =
      1024;  // lookups per task: enough tasks to share evenly, few enough to be cheap
  static constexpr int64_t kAhead = 8;  // runs between the request for memory and its use
  static constexpr int64_t kMaxWidth = 2048;

  // The gradients that make up one run's sum.
  struct Terms {
    std::vector<Source<T>> rows;
    std::vector<Acc> weights;
  };

  // Before anything is written: a row that the table does not have.
  void refuse_absent(const char* op) const {
    const BadIndex bad = parallel_lookup(chunks(), 1, [&](int64_t begin, int64_t end) {
      BadIndex first;
      for (int64_t at = begin * kChunk; at < std::min(sorted_.count, end * kChunk); ++at) {
        const int64_t row = row_of(key(at));
        if (rows_(row).dim < 0) first.keep_first({tag_of(key(at)), row});
      }
      return first;
    });
    bad.raise(op, rows_.num_rows);
  }

  Key key(int64_t at) const { return sorted_.keys[at]; }

  Run run_at(int64_t at) const {
    const int64_t row = row_of(key(at));
    const Row where = rows_(row);
    int32_t dim = limit_.apply(where.dim, tag_of(key(at)));
    int64_t end = at + 1;
    while (end < sorted_.count && row_of(key(end)) == row) {
      if (limit_.numbers != nullptr) dim = std::max(dim, limit_.apply(where.dim, tag_of(key(end))));
      ++end;
    }
    return {row, where, at, end, dim};
  }

  template <typename Index>
  void read_bags(const Bags<Index>& bags) {
    bag_of_.reset(new int32_t[static_cast<size_t>(bags.lookups)]);
    torch::stable::parallel_for(0, bags.bags, 512, [&](int64_t begin, int64_t end) {
      for (int64_t bag = begin; bag < end; ++bag)
        std::fill(
            bag_of_.get() + bags.begin(bag), bag_of_.get() + bags.end(bag),
            static_cast<int32_t>(bag));
    });
  }

  template <typename Index>
  void read_scales(const Bags<Index>& bags, const Index* indices, int64_t padding_idx) {
    bag_scale_.resize(static_cast<size_t>(bags.bags));
    torch::stable::parallel_for(0, bags.bags, 512, [&](int64_t begin, int64_t end) {
      for (int64_t bag = begin; bag < end; ++bag) {
        int64_t count = 0;
        for (int64_t p = bags.begin(bag); p < bags.end(bag); ++p)
          count += static_cast<int64_t>(indices[p]) != padding_idx;
        bag_scale_[bag] = count > 0 ? Acc(1) / static_cast<Acc>(count) : Acc(0);
      }
    });
  }

  // The line of the gradient that a lookup gets.
  int64_t source_of(int64_t tag) const { return bag_of_ ? bag_of_[tag] : tag; }

  Acc scale_of(int64_t tag, int64_t source) const {
    if (weights_ != nullptr) return static_cast<Acc>(weights_[tag]);
    return bag_scale_[source];
  }

  void prefetch_gradient(const Run& run) const {
    for (int64_t i = run.begin; i < std::min(run.end, run.begin + 4); ++i) {
      prefetch_bytes(
          grad_ + source_of(tag_of(key(i))) * width_, run.dim * static_cast<int64_t>(sizeof(T)));
    }
  }

  // The sum of a run's gradients: in `sum`, or where it already stands.
  const Acc* sum_of(const Run& run, Terms& terms, Acc* sum) const {
    if (winners_ != nullptr) return sum_of_winners(run, sum);
    const bool is_weighted = weights_ != nullptr || !bag_scale_.empty();
    if constexpr (std::is_same_v<T, Acc>) {
      if (run.end - run.begin == 1 && !is_weighted)
        return grad_ + source_of(tag_of(key(run.begin))) * width_;
    }
    terms.rows.clear();
    terms.weights.clear();
    for (int64_t i = run.begin; i < run.end; ++i) {
      const int64_t tag = tag_of(key(i));
      const int64_t source = source_of(tag);
      terms.rows.push_back({grad_ + source * width_, limit_.apply(run.where.dim, tag)});
      if (is_weighted) terms.weights.push_back(scale_of(tag, source));
    }
    const int64_t count = static_cast<int64_t>(terms.rows.size());
    const SumOptions<T> options{is_weighted ? terms.weights.data() : nullptr};
    NothingAhead nothing;
    sum_rows<T>(terms.rows.data(), count, options, sum, run.dim, nothing);
    return sum;
  }

  // Max: a column's gradient goes to the lookup that won it.
  const Acc* sum_of_winners(const Run& run, Acc* sum) const {
    std::fill(sum, sum + run.dim, Acc(0));
    for (int64_t i = run.begin; i < run.end; ++i) {
      const int64_t position = tag_of(key(i));
      const int64_t at = source_of(position) * width_;
      const int32_t dim = limit_.apply(run.where.dim, position);
      for (int32_t k = 0; k < dim; ++k) {
        if (winners_[at + k] == position) sum[k] += static_cast<Acc>(grad_[at + k]);
      }
    }
    return sum;
  }

  const T* grad_;
  int64_t width_;
  EitherRows rows_{};
  Limit limit_;
  const T* weights_ = nullptr;
  const int32_t* winners_ = nullptr;
  std::unique_ptr<int32_t[]> bag_of_;  // [L], where lookups are tagged with positions
  std::vector<Acc> bag_scale_;         // [G], mean only
  SortedLookups sorted_;
};

}  // namespace
}  // namespace varemb
