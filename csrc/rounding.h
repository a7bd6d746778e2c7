// Stochastic rounding of float32 to 16 bits: up or down with the chance that makes the mean exact.
// The random word of a number depends on seed, offset and the number's place in the flat values
// alone, so that every backend stores the same bits. No torch here: host and device code share it.
#pragma once

#include "host_device.h"

#include <cstdint>
#include <cstring>

namespace varemb {
namespace {

struct PhiloxWords {
  uint32_t word[4];
};

// Philox4x32-10 (Salmon et al. 2011).
VAREMB_HOST_DEVICE inline PhiloxWords philox(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter.word[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter.word[2];
    counter = {
        {static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
         static_cast<uint32_t>(product1),
         static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
         static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The words of the four numbers at places 4 * group to 4 * group + 3.
VAREMB_HOST_DEVICE inline PhiloxWords random_words(int64_t seed, int64_t offset, int64_t group) {
  const uint64_t s = static_cast<uint64_t>(seed);
  const uint64_t o = static_cast<uint64_t>(offset);
  const uint64_t g = static_cast<uint64_t>(group);
  return philox(
      {{static_cast<uint32_t>(g), static_cast<uint32_t>(g >> 32), static_cast<uint32_t>(o),
        static_cast<uint32_t>(o >> 32)}},
      static_cast<uint32_t>(s), static_cast<uint32_t>(s >> 32));
}

VAREMB_HOST_DEVICE inline uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

VAREMB_HOST_DEVICE inline float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

constexpr uint32_t kFloatInfinity = 0x7f800000u;

// The two rules choose by values instead of branches, so that a loop over numbers becomes vector
// code.

// Bits of a bfloat16: a random number is added to the 16 bits that are cut off.
VAREMB_HOST_DEVICE inline uint16_t round_bfloat16(float x, uint32_t word) {
  const uint32_t bits = float_bits(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t added = magnitude < kFloatInfinity ? word & 0xffffu : 0u;
  return static_cast<uint16_t>(magnitude > kFloatInfinity ? 0x7fc0u : (bits + added) >> 16);
}

// Bits of a float16. Below 2^-14 its numbers are multiples of 2^-24, and so many of them are the
// bits; above, a random number is added to the 13 bits that are cut off.
VAREMB_HOST_DEVICE inline uint16_t round_float16(float x, uint32_t word) {
  constexpr uint32_t kSmallestNormal = (127 - 14) << 23;  // 2^-14
  constexpr uint32_t kPastLargest = (127 + 16) << 23;     // 2^16
  const uint32_t bits = float_bits(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const bool is_small = magnitude < kSmallestNormal;
  const float steps = float_of(is_small ? magnitude : 0u) * 0x1p24f;
  const int32_t below = static_cast<int32_t>(steps);
  const float chance = static_cast<float>(static_cast<int32_t>(word & 0xffffffu)) * 0x1p-24f;
  const int32_t small = below + (chance < steps - static_cast<float>(below) ? 1 : 0);
  const uint32_t raised = magnitude + (word & 0x1fffu);
  uint32_t out = (raised - (kSmallestNormal - (1u << 23))) >> 13;
  out = raised < kPastLargest ? out : 0x7c00u;
  out = is_small ? static_cast<uint32_t>(small) : out;
  out = magnitude > kFloatInfinity ? 0x7e00u : out;
  return static_cast<uint16_t>(out | ((bits >> 16) & 0x8000u));
}

// The number at `position` of the flat values.
VAREMB_HOST_DEVICE inline uint16_t round_bfloat16_at(
    float x,
    int64_t seed,
    int64_t offset,
    int64_t position) {
  return round_bfloat16(x, random_words(seed, offset, position / 4).word[position % 4]);
}

VAREMB_HOST_DEVICE inline uint16_t round_float16_at(
    float x,
    int64_t seed,
    int64_t offset,
    int64_t position) {
  return round_float16(x, random_words(seed, offset, position / 4).word[position % 4]);
}

}  // namespace
}  // namespace varemb
