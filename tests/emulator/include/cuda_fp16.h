// IEEE half precision by the compiler's own conversions.
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;
};
inline float __half2float(__half number) {
  _Float16 value;
  std::memcpy(&value, &number.bits, sizeof(value));
  return static_cast<float>(value);
}
inline __half __float2half_rn(float number) {
  const _Float16 value = static_cast<_Float16>(number);
  __half out;
  std::memcpy(&out.bits, &value, sizeof(value));
  return out;
}
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
