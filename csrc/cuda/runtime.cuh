// What host functions of the CUDA build share: dispatch, launches on torch's stream, scratch
// memory, and the library's sort, selection and scan.
#pragma once

#include "../checks.h"
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

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls body(TypeTag<T>) for the dtype of stored numbers.
template <typename Body>
void dispatch_values(const char* op, const Tensor& values, const Body& body) {
  switch (values.scalar_type()) {
    case ScalarType::Float: return body(TypeTag<float>{});
    case ScalarType::Double: return body(TypeTag<double>{});
    case ScalarType::BFloat16: return body(TypeTag<__nv_bfloat16>{});
    case ScalarType::Half: return body(TypeTag<__half>{});
    default:
      fail(
          op, ": values must be float32, float64, bfloat16 or float16, got ",
          torch::headeronly::toString(values.scalar_type()));
  }
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

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <typename T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

inline Integers integers(const char* op, const char* name, const Tensor& tensor) {
  check_index_dtype(op, name, tensor);
  check_vector(op, name, tensor);
  return {tensor.const_data_ptr(), tensor.scalar_type() == ScalarType::Long};
}

inline Limit limit_of(const char* op, const std::optional<Tensor>& limit, int64_t lookups) {
  check_limit(op, limit, lookups);
  if (!limit) return {};
  return {data<int32_t>(*limit), limit->size(0) == 1 ? 0 : 1};
}

inline Table table_of(
    const char* op,
    const Tensor& index,
    int64_t num_rows,
    int64_t width,
    int64_t granule,
    int64_t numbers) {
  check_rows(op, index, num_rows, width, granule);
  check(
      reinterpret_cast<uintptr_t>(index.const_data_ptr()) % 8 == 0, op,
      ": index must be aligned to 8 bytes");
  const PackedRows rows{
      data<uint8_t>(index), num_rows, static_cast<int32_t>(width), static_cast<int32_t>(granule)};
  return {rows, numbers};
}

inline Pool pool_of(const char* op, int64_t mode) {
  check(mode >= 0 && mode <= 2, op, ": mode must be 0 (sum), 1 (mean) or 2 (max), got ", mode);
  return static_cast<Pool>(mode);
}

// The offsets themselves are checked where kernels read them.
inline Bags bags_of(
    const char* op,
    const Tensor& offsets,
    int64_t lookups,
    bool include_last_offset) {
  const Integers numbers = integers(op, "offsets", offsets);
  const int64_t count = offsets.size(0);
  check(!include_last_offset || count > 0, op, ": include_last_offset needs at least one offset");
  const int64_t bags = count - (include_last_offset ? 1 : 0);
  check(bags > 0 || lookups == 0, op, ": ", lookups, " indices need at least one bag");
  return {numbers, bags, lookups, include_last_offset};
}

}  // namespace
}  // namespace varemb
