// What kernels are written with: stored types, 16-byte pieces of rows, groups of lanes. Free of
// torch, so that the tests can compile kernels for the host.
#pragma once

#include "../rows.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cassert>
#include <cstdint>

// A broken promise of the caller stops the kernel; the tests' emulator turns it into an exception.
#if !defined(VAREMB_DEVICE_ASSERT)
#define VAREMB_DEVICE_ASSERT(holds) assert(holds)
#endif

namespace varemb {
namespace {

constexpr int kThreads = 128;   // of a block: the widest group, or more groups of fewer lanes
constexpr int kPackBytes = 16;  // the longest load or store of a lane

// The type that sums and updates are computed in.
template <typename T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};
template <typename T>
using WideOf = typename Wide<T>::type;

__device__ inline float widen(float number) { return number; }
__device__ inline double widen(double number) { return number; }
__device__ inline float widen(__half number) { return __half2float(number); }
__device__ inline float widen(__nv_bfloat16 number) { return __bfloat162float(number); }

// To the nearest, ties to even.
template <typename T>
__device__ T narrow(WideOf<T> number);
template <>
__device__ inline float narrow<float>(float number) {
  return number;
}
template <>
__device__ inline double narrow<double>(double number) {
  return number;
}
template <>
__device__ inline __half narrow<__half>(float number) {
  return __float2half_rn(number);
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float number) {
  return __float2bfloat16_rn(number);
}

// With one rounding, written out: the compiler is told not to fuse by itself, so that sums have the
// bits of other backends.
__device__ inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// int32 or int64 numbers, told apart at run time: the branch is the same for all threads and costs
// less than twice as many kernels.
struct Integers {
  const void* numbers;
  bool is_long;

  __device__ int64_t operator[](int64_t at) const {
    return is_long ? static_cast<const int64_t*>(numbers)[at]
                   : static_cast<int64_t>(static_cast<const int32_t*>(numbers)[at]);
  }
};

// The rows of a table with the length of its flat buffers, against which every row is checked.
template <typename Rows>
struct Table {
  Rows rows;
  int64_t numbers;  // E

  __device__ bool holds(int64_t row) const { return row >= 0 && row < rows.num_rows; }

  __device__ Row operator()(int64_t row) const {
    VAREMB_DEVICE_ASSERT(holds(row) && "an index is outside the table");
    const Row where = rows(row);
    VAREMB_DEVICE_ASSERT(is_present(where) && "the table has no row of this index");
    VAREMB_DEVICE_ASSERT(holds(where) && "the index describes more numbers than there are");
    return where;
  }

  // Several rows at once: every load of one kind before the next, which checks in between would
  // prevent. Row 0 is read for one that is outside, and then the kernel stops.
  template <int kRows>
  __device__ void find(const int64_t (&asked)[kRows], Row (&where)[kRows]) const {
    bool is_inside = true;
    bool has_all = true;
    bool is_described = true;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      is_inside = is_inside && holds(asked[i]);
      where[i] = rows(holds(asked[i]) ? asked[i] : 0);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      has_all = has_all && is_present(where[i]);
      is_described = is_described && holds(where[i]);
    }
    VAREMB_DEVICE_ASSERT(is_inside && "an index is outside the table");
    VAREMB_DEVICE_ASSERT(has_all && "the table has no row of this index");
    VAREMB_DEVICE_ASSERT(is_described && "the index describes more numbers than there are");
  }

 private:
  __device__ static bool is_present(const Row& where) {
    return !Rows::kMayLackRows || where.dim >= 0;
  }
  __device__ bool holds(const Row& where) const {
    return where.offset >= 0 && where.offset + where.dim <= numbers;
  }
};

// What a lane moves at once: 16 bytes of one row.
template <typename T>
struct alignas(kPackBytes) Pack {
  static constexpr int kSize = kPackBytes / static_cast<int>(sizeof(T));
  T numbers[kSize];
};

template <typename T>
__device__ bool is_whole(const T* at, int count) {
  return count >= Pack<T>::kSize && reinterpret_cast<uintptr_t>(at) % kPackBytes == 0;
}

// The first `count` numbers at `from`, zeros for the others; count may be negative.
template <typename T>
__device__ Pack<T> load_pack(const T* from, int count) {
  if (is_whole(from, count)) return *reinterpret_cast<const Pack<T>*>(from);
  Pack<T> pack;
#pragma unroll
  for (int v = 0; v < Pack<T>::kSize; ++v) pack.numbers[v] = v < count ? from[v] : narrow<T>(0);
  return pack;
}

template <typename T>
__device__ void store_pack(T* to, int count, const Pack<T>& pack) {
  if (is_whole(to, count)) {
#if defined(__CUDA_ARCH__)
    // Written out: behind the branches of a load the compiler would store number by number.
    uint4 words;
    memcpy(&words, &pack, sizeof(words));
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(to), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
                 : "memory");
#else
    *reinterpret_cast<Pack<T>*>(to) = pack;
#endif
    return;
  }
#pragma unroll
  for (int v = 0; v < Pack<T>::kSize; ++v) {
    if (v < count) to[v] = pack.numbers[v];
  }
}

// kLanes neighbouring threads that work on one row: 8, 32 or a whole block of 128.
template <int kLanes>
struct Group {
  static constexpr int kPerBlock = kThreads / kLanes;

  int lane = static_cast<int>(threadIdx.x) % kLanes;
  int64_t number = static_cast<int64_t>(blockIdx.x) * kPerBlock + threadIdx.x / kLanes;
  int64_t count = static_cast<int64_t>(gridDim.x) * kPerBlock;  // groups of the launch

  // The sum over the group's lanes, the same bits in every lane. All lanes must call it.
  template <typename Acc>
  __device__ Acc sum(Acc term) const {
    constexpr int kWarp = 32;
    constexpr int kWidth = kLanes < kWarp ? kLanes : kWarp;
    const int first = static_cast<int>(threadIdx.x) % kWarp / kWidth * kWidth;
    // Groups of one warp may be at different places: only the own lanes take part.
    const unsigned lanes = (kWidth == kWarp ? 0xffffffffu : (1u << kWidth) - 1) << first;
#pragma unroll
    for (int step = kWidth / 2; step > 0; step /= 2) term += __shfl_xor_sync(lanes, term, step);
    if constexpr (kLanes > kWarp) {
      __shared__ Acc parts[kLanes / kWarp];
      __syncthreads();  // the parts of the sum before may still be read
      if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = term;
      __syncthreads();  // every warp's part must be there
      term = 0;
      for (int part = 0; part < kLanes / kWarp; ++part) term += parts[part];
    }
    return term;
  }
};

// The 16 columns of a row that a lane keeps in registers, as packs that are kLanes packs apart: a
// group holds up to 16 kLanes columns, and a narrow row fills only the first packs of its lanes.
template <typename T, int kLanes>
struct Tile {
  using Acc = WideOf<T>;
  static constexpr int kPack = Pack<T>::kSize;
  static constexpr int kNumbers = 16;
  static constexpr int kPacks = kNumbers / kPack;
  static constexpr int kColumns = kLanes * kNumbers;

  Acc numbers[kNumbers];

  __device__ static int column(int lane, int pack) { return (pack * kLanes + lane) * kPack; }

  __device__ void fill(Acc number) {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) numbers[i] = number;
  }

  // visit(pack number, first column) for the packs that begin below dim.
  template <typename Visit>
  __device__ static void each(int lane, int dim, const Visit& visit) {
#pragma unroll
    for (int pack = 0; pack < kPacks; ++pack) {
      if (column(lane, pack) < dim) visit(pack, column(lane, pack));
    }
  }

  __device__ Pack<T> narrowed(int pack) const {
    Pack<T> out;
#pragma unroll
    for (int v = 0; v < kPack; ++v) out.numbers[v] = narrow<T>(numbers[pack * kPack + v]);
    return out;
  }

  __device__ void store(T* to, int lane, int dim) const {
    each(lane, dim, [&](int pack, int column) {
      store_pack(to + column, dim - column, narrowed(pack));
    });
  }
};

}  // namespace
}  // namespace varemb
