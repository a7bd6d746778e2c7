// Host part of the gradient operations: sort, runs, and the launches that sum them.
#pragma once

#include "gradient.cuh"
#include "runtime.cuh"

namespace varemb {
namespace {

template <typename T>
class Gradient {
 public:
  using Acc = WideOf<T>;

  // The arguments must have been checked.
  Gradient(const Device& device, const GradientArgs& args, int64_t numbers)
      : device_(device), width_(args.grad.size(1)) {
    read(args, numbers);
    if (call_.lookups > 0) sort(args);
  }

  int64_t capacity() const { return runs_.capacity; }
  const LookedUp<T>& call() const { return call_; }
  const Runs& runs() const { return runs_; }

  // Gives the sum of every run to the sink; nothing to do without lookups.
  template <typename Sink>
  void sum_into(const Sink& sink) const {
    if (call_.lookups == 0 || width_ == 0) return;
    dispatch_lanes(width_, [&](auto lanes) {
      constexpr int kLanes = decltype(lanes)::count;
      device_.launch(
          short_run_kernel<T, kLanes, Sink>, device_.template blocks<kLanes>(runs_.capacity), call_,
          runs_, sink);
      if (call_.lookups <= kWindow) return;  // no run can be longer
      const int64_t windows = (call_.lookups + kWindow - 1) / kWindow;
      const Tensor sums = device_.template scratch<Acc>(2 * windows * width_);
      const Tensor trained = device_.template scratch<int32_t>(2 * windows);
      device_.launch(
          part_kernel<T, kLanes>, device_.template blocks<kLanes>(2 * windows), call_, runs_,
          windows, mutable_data<Acc>(sums), mutable_data<int32_t>(trained));
      device_.launch(
          long_run_kernel<T, kLanes, Sink>, device_.template blocks<kLanes>(windows), call_, runs_,
          windows, static_cast<const Acc*>(data<Acc>(sums)), data<int32_t>(trained), sink);
    });
  }

 private:
  void read(const GradientArgs& args, int64_t numbers) {
    call_.grad = data<T>(args.grad);
    call_.table = table_of(args.rows(numbers));
    call_.indices = integers_of(args.indices);
    call_.lookups = args.indices.size(0);
    check_lookups(device_.op, call_.lookups);
    call_.limit = limit_of(args.limit);
    call_.padding_idx = args.padding_idx;
    call_.weights = data_or_null<T>(args.per_sample_weights);
    call_.winners = data_or_null<int32_t>(args.winners);
    if (!args.offsets) return;
    call_.bags = bags_of(*args.offsets, call_.lookups, args.include_last_offset);
    const Pool pool = static_cast<Pool>(args.mode);
    if (pool == Pool::kMean && call_.bags.bags > 0) {
      shares_ = device_.template scratch<Acc>(call_.bags.bags);
      device_.launch(
          share_kernel<T>, device_.template blocks<1>(call_.bags.bags), call_,
          mutable_data<Acc>(*shares_));
      call_.shares = data<Acc>(*shares_);
    }
  }

  void sort(const GradientArgs& args) {
    const int64_t lookups = call_.lookups;
    const bool has_bags = args.offsets.has_value();
    const Tensor keys = device_.template scratch<uint32_t>(lookups);
    const Tensor positions = device_.template scratch<int32_t>(lookups);
    if (has_bags) bag_of_ = device_.template scratch<int32_t>(lookups);
    device_.launch(
        key_kernel<T>, device_.template blocks<1>(lookups), call_, has_bags,
        mutable_data<uint32_t>(keys), mutable_data<int32_t>(positions),
        has_bags ? mutable_data<int32_t>(*bag_of_) : nullptr);
    if (has_bags) call_.bag_of = data<int32_t>(*bag_of_);
    sorted_keys_ = device_.template scratch<uint32_t>(lookups);
    sorted_positions_ = device_.template scratch<int32_t>(lookups);
    device_.sort_pairs(
        data<uint32_t>(keys), mutable_data<uint32_t>(*sorted_keys_), data<int32_t>(positions),
        mutable_data<int32_t>(*sorted_positions_), lookups, static_cast<uint32_t>(args.num_rows));
    runs_.keys = data<uint32_t>(*sorted_keys_);
    runs_.positions = data<int32_t>(*sorted_positions_);
    runs_.capacity = std::min(lookups, args.num_rows);
    // In every launch the positions are 0, 1, 2, ...: what the selection picks from.
    find_runs(data<int32_t>(positions), lookups, args.num_rows);
  }

  void find_runs(const int32_t* places, int64_t lookups, int64_t num_rows) {
    starts_ = device_.template scratch<int32_t>(runs_.capacity);
    counts_ = device_.template scratch<int32_t>(2);  // runs, lookups in runs
    int32_t* const counts = mutable_data<int32_t>(*counts_);
    check_cuda(device_.op, cudaMemsetAsync(counts, 0, 2 * sizeof(int32_t), device_.stream));
    const Tensor begins = device_.template scratch<uint8_t>(lookups);
    device_.launch(
        run_kernel, device_.template blocks<1>(lookups), runs_.keys, lookups, num_rows,
        mutable_data<uint8_t>(begins), counts + 1);
    device_.select(places, data<uint8_t>(begins), mutable_data<int32_t>(*starts_), counts, lookups);
    runs_.starts = data<int32_t>(*starts_);
    runs_.count = counts;
    runs_.total = counts + 1;
  }

  const Device& device_;
  int64_t width_;
  LookedUp<T> call_{};
  Runs runs_{};
  std::optional<Tensor> shares_, bag_of_, sorted_keys_, sorted_positions_, starts_, counts_;
};

}  // namespace
}  // namespace varemb
