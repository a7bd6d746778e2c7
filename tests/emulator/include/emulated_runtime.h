// What takes the place of torch's CUDA stream, device guard and CUB in runtime.cuh.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <numeric>
#include <vector>

#define VAREMB_DEVICE_KEY CPU

namespace varemb {
namespace {

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

inline cudaStream_t current_stream(const Tensor&) { return nullptr; }

}  // namespace
}  // namespace varemb

// CUB's protocol: the first call, without memory, asks how much is needed.
namespace cub {

// Poisoned like fresh device memory, so that what a kernel forgets to ask for shows.
constexpr size_t kTemporary = 64;

struct DeviceRadixSort {
  template <typename Key, typename Value, typename Count>
  static cudaError_t SortPairs(
      void* temporary,
      size_t& bytes,
      const Key* keys,
      Key* sorted_keys,
      const Value* values,
      Value* sorted_values,
      Count count,
      int begin_bit,
      int end_bit,
      cudaStream_t) {
    if (temporary == nullptr) return bytes = kTemporary, cudaSuccess;
    std::memset(temporary, 0xff, bytes);
    // Only the bits that were named take part, as on the device.
    const auto part = [&](Key key) {
      const uint64_t upper = end_bit >= 64 ? ~0ull : (1ull << end_bit) - 1;
      return (static_cast<uint64_t>(key) & upper) >> begin_bit;
    };
    std::vector<size_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return part(keys[a]) < part(keys[b]);
    });
    for (size_t i = 0; i < order.size(); ++i) {
      sorted_keys[i] = keys[order[i]];
      sorted_values[i] = values[order[i]];
    }
    return cudaSuccess;
  }
};

struct DeviceSelect {
  template <typename Input, typename Flags, typename Output, typename Selected, typename Count>
  static cudaError_t Flagged(
      void* temporary,
      size_t& bytes,
      Input input,
      Flags flags,
      Output output,
      Selected selected,
      Count count,
      cudaStream_t) {
    if (temporary == nullptr) return bytes = kTemporary, cudaSuccess;
    std::memset(temporary, 0xff, bytes);
    *selected = 0;
    for (Count i = 0; i < count; ++i) {
      if (flags[i]) output[(*selected)++] = input[i];
    }
    return cudaSuccess;
  }
};

struct DeviceScan {
  template <typename Input, typename Output, typename Count>
  static cudaError_t ExclusiveSum(
      void* temporary,
      size_t& bytes,
      Input input,
      Output output,
      Count count,
      cudaStream_t) {
    if (temporary == nullptr) return bytes = kTemporary, cudaSuccess;
    std::memset(temporary, 0xff, bytes);
    std::decay_t<decltype(output[0])> sum = 0;
    for (Count i = 0; i < count; ++i) {
      const auto term = input[i];
      output[i] = sum;
      sum += term;
    }
    return cudaSuccess;
  }
};

}  // namespace cub
