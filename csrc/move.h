// One row's move to another place and another dim: a line of the tensor that repack takes. Free of
// torch.
#pragma once

#include "host_device.h"

#include <cstdint>

namespace varemb {
namespace {

struct Move {
  int64_t source;  // of the first number in values
  int64_t target;  // of the first number in out
  int64_t kept;    // numbers copied
  int64_t dim;     // numbers written; zeros beyond kept

  VAREMB_HOST_DEVICE bool is_inside(int64_t numbers, int64_t written) const {
    return kept >= 0 && dim >= kept && source >= 0 && target >= 0 && source <= numbers - kept &&
           target <= written - dim;
  }
};

}  // namespace
}  // namespace varemb
