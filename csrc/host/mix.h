// A bijection of 64-bit numbers in which every bit moves every other one.
#pragma once

#include <cstdint>

namespace varemb {

// The finish of splitmix64: numbers in sequence or in strides come out like random ones.
inline uint64_t mix(uint64_t number) {
  number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9ull;
  number = (number ^ (number >> 27)) * 0x94D049BB133111EBull;
  return number ^ (number >> 31);
}

}  // namespace varemb
