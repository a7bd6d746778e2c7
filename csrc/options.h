// What the whole numbers among the operations' arguments mean. Free of torch.
#pragma once

#include <cstdint>

namespace varemb {
namespace {

enum class Pool : int64_t { kSum = 0, kMean = 1, kMax = 2 };
enum class Algorithm : int64_t { kSgd = 0, kAdagrad = 1, kRowWiseAdagrad = 2, kAdam = 3 };

}  // namespace
}  // namespace varemb
