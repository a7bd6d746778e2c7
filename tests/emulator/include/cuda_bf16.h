// bfloat16: the upper half of a float.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 number) {
  const uint32_t bits = static_cast<uint32_t>(number.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}
inline __nv_bfloat16 __float2bfloat16_rn(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof(bits));
  if (std::isnan(number)) return {0x7fff};
  bits += 0x7fff + (bits >> 16 & 1);  // to the nearest, ties to even
  return {static_cast<uint16_t>(bits >> 16)};
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
