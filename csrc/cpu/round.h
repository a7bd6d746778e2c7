// How a register of new values is stored.
#pragma once

#include "../rounding.h"
#include "vec.h"

#include <cstring>
#include <type_traits>

namespace varemb {
namespace {

// Rounded to nearest, as registers do.
struct Nearest {
  template <typename T>
  void operator()(const Vec<T>& numbers, T* values, int64_t at, int64_t n) const {
    numbers.store(values + at, n);
  }
};

// Or up or down at random, the chance by distance; 16-bit rows only.
struct Stochastic {
  int64_t seed, offset;

  template <typename T>
  void operator()(const Vec<T>& numbers, T* values, int64_t at, int64_t n) const {
    static_assert(sizeof(T) == 2);
    constexpr int64_t lanes = Vec<T>::kLanes;
    const int64_t count = n < lanes ? n : lanes;
    const int64_t skipped = at % 4;  // words of the first group that belong to numbers before
    alignas(64) uint32_t words[lanes + 4] = {};
    for (int64_t group = 0; group * 4 < skipped + count; ++group) {
      const PhiloxWords four = random_words(seed, offset, at / 4 + group);
      std::memcpy(words + group * 4, four.word, sizeof(four.word));
    }
    alignas(64) float part[lanes];
    numbers.store(part);
    alignas(64) uint16_t bits[lanes];
    for (int64_t i = 0; i < lanes; ++i) {
      if constexpr (std::is_same_v<T, Half>)
        bits[i] = round_float16(part[i], words[skipped + i]);
      else
        bits[i] = round_bfloat16(part[i], words[skipped + i]);
    }
    std::memcpy(values + at, bits, static_cast<size_t>(count) * sizeof(T));
  }
};

}  // namespace
}  // namespace varemb
