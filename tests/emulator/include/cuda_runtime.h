// The part of CUDA that the kernels use, on the host: same names, blocks one after another, threads
// as fibers (fibers.h). Stands in for CUDA's own header when the tests compile kernels as C++.
#pragma once

#include "fibers.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Blocks run one after another, so one copy serves each in turn.
#define __shared__ static
#define VAREMB_STRINGIFY(text) #text
#define VAREMB_DEVICE_ASSERT(holds) \
  ((holds) ? void() : throw std::out_of_range("device assert: " VAREMB_STRINGIFY(holds)))

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the emulator"; }
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  if (bytes > 0) std::memset(to, value, bytes);
  return cudaSuccess;
}
enum cudaMemcpyKind { cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
inline cudaError_t cudaMemcpyAsync(
    void* to,
    const void* from,
    size_t bytes,
    cudaMemcpyKind,
    cudaStream_t) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

template <typename... Parameters, typename... Args>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config,
    void (*kernel)(Parameters...),
    const Args&... args) {
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  for (unsigned block = 0; block < gridDim.x; ++block) {
    blockIdx = dim3(block, 0, 0);
    emulator::run_block(
        blockDim.x, [](unsigned thread) { threadIdx = dim3(thread, 0, 0); },
        [&] { kernel(args...); });
  }
  return cudaSuccess;
}

inline void __syncthreads() { emulator::wait_for_block(); }
inline void __syncwarp(unsigned mask) {
  emulator::exchange(mask, 0, static_cast<int>(threadIdx.x % 32));
}

// Every lane of the mask gives a number and takes the one of another lane.
template <typename T>
T __shfl_sync(unsigned mask, T number, int source, int width = 32) {
  static_assert(sizeof(T) <= 8);
  const int lane = static_cast<int>(threadIdx.x % 32);
  uint64_t bits = 0;
  std::memcpy(&bits, &number, sizeof(T));
  bits = emulator::exchange(mask, bits, lane / width * width + source % width);
  std::memcpy(&number, &bits, sizeof(T));
  return number;
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T number, int other, int width = 32) {
  return __shfl_sync(mask, number, static_cast<int>(threadIdx.x % width) ^ other, width);
}

template <typename T>
T __ldg(const T* at) {
  return *at;
}

// Threads take turns, so that a plain addition is atomic.
template <typename T>
T atomicAdd(T* at, T number) {
  const T before = *at;
  *at = before + number;
  return before;
}
