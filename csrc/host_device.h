// Marks functions that CPU and CUDA kernels share.
#pragma once

#if defined(__CUDACC__)
#define VAREMB_HOST_DEVICE __host__ __device__
#else
#define VAREMB_HOST_DEVICE
#endif
