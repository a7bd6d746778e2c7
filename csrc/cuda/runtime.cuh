// What host functions of the CUDA build share: dispatch, launches on torch's stream, scratch
// memory, and the library's sort, selection and scan.
#pragma once

#include "../tensors.h"
#include "bags.cuh"
#include "device.cuh"

#if defined(VAREMB_EMULATOR)
#include "emulated_runtime.h"
#else
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#include <cub/device/device_select.cuh>
#define VAREMB_DEVICE_KEY CUDA
#endif

#include <algorithm>
#include <bit>
#include <limits>

namespace varemb {
namespace {

#if !defined(VAREMB_EMULATOR)
using torch::stable::accelerator::DeviceGuard;

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  const auto error = aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream);
  STABLE_TORCH_ERROR_CODE_CHECK(error);
  return static_cast<cudaStream_t>(stream);
}
#endif

inline void check_cuda(const char* op, cudaError_t error) {
  if (error != cudaSuccess) fail<std::runtime_error>(op, ": CUDA says ", cudaGetErrorString(error));
}

inline bool is_beside(const Tensor& tensor, const Tensor& like) {
  return tensor.is_cuda() == like.is_cuda() && tensor.get_device_index() == like.get_device_index();
}
inline bool is_beside(const std::optional<Tensor>& tensor, const Tensor& like) {
  return !tensor || is_beside(*tensor, like);
}

// Where an operation runs: its tensors' device is the current one while this lives.
struct Device {
  const char* op;
  const Tensor& like;
  DeviceGuard guard;
  cudaStream_t stream;

  // All tensors that kernels read must be named: an address of another device would end the
  // process.
  template <typename... Tensors>
  Device(const char* op, const Tensor& like, const Tensors&... others)
      : op(op), like(like), guard(like.get_device_index()), stream(current_stream(like)) {
    check((is_beside(others, like) && ...), op, ": all tensors must be on the table's device");
  }

  // Enough blocks for `groups` groups of kLanes lanes; kernels stride over the rest.
  template <int kLanes>
  int64_t blocks(int64_t groups) const {
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    return std::clamp<int64_t>((groups + kThreads / kLanes - 1) / (kThreads / kLanes), 1, kMost);
  }

  template <typename Kernel, typename... Args>
  void launch(Kernel kernel, int64_t blocks, const Args&... args) const {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kThreads);
    config.stream = stream;
    check_cuda(op, cudaLaunchKernelEx(&config, kernel, args...));
  }

  // Scratch memory from torch's allocator: no cudaMalloc, so graphs can be captured.
  template <typename T>
  Tensor scratch(int64_t count) const {
    const int64_t words = (count * static_cast<int64_t>(sizeof(T)) + 7) / 8;
    return torch::stable::new_empty(like, {words}, ScalarType::Long);
  }

  // Calls run(temporary, its size): first to ask for the size, then to work. CUB's protocol.
  template <typename Run>
  void with_temporary(const Run& run) const {
    size_t bytes = 0;
    check_cuda(op, run(nullptr, bytes));
    const Tensor temporary = scratch<uint8_t>(std::max<int64_t>(static_cast<int64_t>(bytes), 1));
    check_cuda(op, run(temporary.mutable_data_ptr(), bytes));
  }

  // Sorts pairs by key, equal keys in their order; keys must be at most `largest`: only its bits
  // are looked at.
  void sort_pairs(
      const uint32_t* keys,
      uint32_t* sorted_keys,
      const int32_t* positions,
      int32_t* sorted_positions,
      int64_t count,
      uint32_t largest) const {
    const int bits = std::max(static_cast<int>(std::bit_width(largest)), 1);
    with_temporary([&](void* temporary, size_t& bytes) {
      return cub::DeviceRadixSort::SortPairs(
          temporary, bytes, keys, sorted_keys, positions, sorted_positions, count, 0, bits, stream);
    });
  }

  // The inputs whose flag is set, in their order, and how many they are.
  void select(
      const int32_t* inputs,
      const uint8_t* flags,
      int32_t* selected,
      int32_t* number,
      int64_t count) const {
    with_temporary([&](void* temporary, size_t& bytes) {
      return cub::DeviceSelect::Flagged(
          temporary, bytes, inputs, flags, selected, number, count, stream);
    });
  }

  // sums[i] = terms[0] + ... + terms[i - 1]
  void sum_before(const int64_t* terms, int64_t* sums, int64_t count) const {
    with_temporary([&](void* temporary, size_t& bytes) {
      return cub::DeviceScan::ExclusiveSum(temporary, bytes, terms, sums, count, stream);
    });
  }
};

// Calls body(TypeTag<T>) for the dtype of stored numbers.
template <typename Body>
void dispatch_values(const char* op, const Tensor& values, const Body& body) {
  dispatch_numbers<__nv_bfloat16, __half>(op, values, body);
}

template <int kLanes>
struct Lanes {
  static constexpr int count = kLanes;
};

// Calls body(Lanes<n>) with the narrowest group whose tile holds a row of the width.
template <typename Body>
void dispatch_lanes(int64_t width, const Body& body) {
  if (width <= Tile<float, 8>::kColumns) return body(Lanes<8>{});
  if (width <= Tile<float, 32>::kColumns) return body(Lanes<32>{});
  static_assert(Tile<float, kThreads>::kColumns >= 2048, "the widest row must fit");
  return body(Lanes<kThreads>{});
}

// What kernels take, of checked arguments.
inline Integers integers_of(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.scalar_type() == ScalarType::Long};
}

inline Table<EitherRows> table_of(const RowsArgs& args) {
  return {either_rows(args), args.numbers};
}

inline Bags bags_of(const Tensor& offsets, int64_t lookups, bool include_last_offset) {
  const int64_t bags = offsets.size(0) - (include_last_offset ? 1 : 0);
  return {integers_of(offsets), bags, lookups, include_last_offset};
}

// Kernels number the lookups of a call in 32 bits.
inline void check_lookups(const char* op, int64_t lookups) {
  check(lookups <= kMost32, op, ": at most 2^31 - 1 indices in a call, got ", lookups);
}

}  // namespace
}  // namespace varemb
