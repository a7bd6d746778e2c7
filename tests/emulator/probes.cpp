// Small kernels, most of them broken in one way each: what the emulator must notice. Run with the
// name of one; prints "right" or "wrong", or what was thrown.
#include <cuda_runtime.h>

#include <cstdio>
#include <memory>
#include <string>

namespace {

constexpr int kThreads = 128;

// Every thread adds what the others wrote to shared memory.
void sum_of_block(bool has_barrier, int* out) {
  __shared__ int numbers[kThreads];
  numbers[threadIdx.x] = 0;
  __syncthreads();
  numbers[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (has_barrier) __syncthreads();
  int sum = 0;
  for (int i = 0; i < kThreads; ++i) sum += numbers[i];
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

void sum_of_warp(unsigned lanes, int* out) {
  int sum = static_cast<int>(threadIdx.x);
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(lanes, sum, step);
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

void read_past(int past, int* out) { out[threadIdx.x] = out[threadIdx.x + past]; }

void divergent_barrier(int*) {
  if (threadIdx.x < 5) __syncthreads();
}

void divergent_shuffle(int* out) {
  if (threadIdx.x != 7) out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);
}

void assert_below(int limit, int*) {
  VAREMB_DEVICE_ASSERT(static_cast<int>(threadIdx.x) < limit && "a thread is past the limit");
}

template <typename Kernel, typename... Args>
void launch(Kernel kernel, const Args&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(3);
  config.blockDim = dim3(kThreads);
  cudaLaunchKernelEx(&config, kernel, args...);
}

bool holds(const int* out, int block_sum, bool per_warp) {
  for (int i = 0; i < 3 * kThreads; ++i) {
    const int warp = i % kThreads / 32;
    const int expected = per_warp ? 32 * 32 * warp + 31 * 32 / 2 : block_sum;
    if (out[i] != expected) return false;
  }
  return true;
}

}  // namespace

int main(int, char** arguments) {
  const std::string name = arguments[1];
  const auto memory = std::make_unique<int[]>(3 * kThreads);
  int* const out = memory.get();
  const int block_sum = kThreads * (kThreads - 1) / 2;
  bool is_right = true;
  try {
    if (name == "barrier" || name == "missing_barrier") {
      launch(sum_of_block, name == "barrier", out);
      is_right = holds(out, block_sum, false);
    } else if (name == "shuffle") {
      launch(sum_of_warp, 0xffffffffu, out);
      is_right = holds(out, 0, true);
    } else if (name == "shuffle_outside_its_mask") {
      launch(sum_of_warp, 0x0000ffffu, out);
    } else if (name == "read") {
      launch(read_past, 2 * kThreads, out);
    } else if (name == "read_off_by_one") {
      launch(read_past, 2 * kThreads + 1, out);
    } else if (name == "divergent_barrier") {
      launch(divergent_barrier, out);
    } else if (name == "divergent_shuffle") {
      launch(divergent_shuffle, out);
    } else if (name == "assert") {
      launch(assert_below, kThreads - 1, out);
    } else {
      std::puts("no such probe");
      return 2;
    }
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 0;
  }
  std::puts(is_right ? "right" : "wrong");
  return 0;
}
