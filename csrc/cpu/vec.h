// A register of numbers with loads and stores of its first n lanes, so that a kernel is one loop
// for every dim. Each file is compiled three times (AVX-512, AVX2, baseline) into three libraries,
// of which one is loaded.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace varemb {
namespace {

using BFloat16 = c10::BFloat16;
using Half = c10::Half;

// What a stored number is computed in.
template <typename T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};

// Plain lanes: double everywhere, float in the baseline build. The compiler vectorises the loops.
template <typename A, int N>
struct Lanes {
  static constexpr int kLanes = N;
  A lane[N];

  static Lanes fill(A value) {
    Lanes out;
    for (int i = 0; i < N; ++i) out.lane[i] = value;
    return out;
  }
  static Lanes zero() { return fill(A(0)); }

  template <typename T>
  static Lanes load(const T* from, int64_t n) {
    Lanes out = zero();
    if (n >= N) {
      for (int i = 0; i < N; ++i) out.lane[i] = static_cast<A>(from[i]);
    } else {
      for (int i = 0; i < n; ++i) out.lane[i] = static_cast<A>(from[i]);
    }
    return out;
  }
  template <typename T>
  static Lanes load(const T* from) {
    return load(from, N);
  }
  template <typename T>
  void store(T* to, int64_t n) const {
    if (n >= N) {
      for (int i = 0; i < N; ++i) to[i] = static_cast<T>(lane[i]);
    } else {
      for (int i = 0; i < n; ++i) to[i] = static_cast<T>(lane[i]);
    }
  }
  template <typename T>
  void store(T* to) const {
    store(to, N);
  }
  A sum() const {
    A total = A(0);
    for (int i = 0; i < N; ++i) total += lane[i];
    return total;
  }
  // a * b + c
  friend Lanes fma(const Lanes& a, const Lanes& b, Lanes c) {
    for (int i = 0; i < N; ++i) c.lane[i] += a.lane[i] * b.lane[i];
    return c;
  }
  friend Lanes sqrt(Lanes a) {
    for (int i = 0; i < N; ++i) a.lane[i] = std::sqrt(a.lane[i]);
    return a;
  }
#define VAREMB_LANEWISE(op)                                         \
  friend Lanes operator op(Lanes a, const Lanes& b) {               \
    for (int i = 0; i < N; ++i) a.lane[i] = a.lane[i] op b.lane[i]; \
    return a;                                                       \
  }
  VAREMB_LANEWISE(+)
  VAREMB_LANEWISE(-)
  VAREMB_LANEWISE(*)
  VAREMB_LANEWISE(/)
#undef VAREMB_LANEWISE
};

#if defined(__AVX512F__)

// Whole registers go without a mask: masked accesses that miss the cache hold up those behind them.
struct Float16Lanes {
  static constexpr int kLanes = 16;
  __m512 lane;

  static Float16Lanes fill(float value) { return {_mm512_set1_ps(value)}; }
  static Float16Lanes zero() { return {_mm512_setzero_ps()}; }
  static __mmask16 first(int64_t n) {
    // bzhi keeps all bits for n >= 16, and only its low byte counts, hence the clamp.
    return static_cast<__mmask16>(_bzhi_u32(
        0xffffu, static_cast<uint32_t>(
                     n < 0    ? 0
                     : n > 16 ? 16
                              : n)));
  }

  static Float16Lanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static Float16Lanes load(const BFloat16* from) {
    const __m512i bits =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))};
  }
  static Float16Lanes load(const Half* from) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
  }
  static Float16Lanes load(const float* from, int64_t n) {
    return n >= kLanes ? load(from) : Float16Lanes{_mm512_maskz_loadu_ps(first(n), from)};
  }
  static Float16Lanes load(const BFloat16* from, int64_t n) {
    if (n >= kLanes) return load(from);
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))};
  }
  static Float16Lanes load(const Half* from, int64_t n) {
    if (n >= kLanes) return load(from);
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), from))};
  }
  void store(float* to) const { _mm512_storeu_ps(to, lane); }
  void store(float* to, int64_t n) const {
    if (n >= kLanes) return store(to);
    _mm512_mask_storeu_ps(to, first(n), lane);
  }
  void store(BFloat16* to, int64_t n) const {
    // Round to nearest even; a NaN stays a NaN (its rounding could carry into the sign).
    const __m512i bits = _mm512_castps_si512(lane);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(lane, lane, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7fc00000));
    _mm256_mask_storeu_epi16(to, first(n), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
  void store(Half* to, int64_t n) const {
    _mm256_mask_storeu_epi16(
        to, first(n), _mm512_cvtps_ph(lane, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  float sum() const { return _mm512_reduce_add_ps(lane); }
  friend Float16Lanes fma(Float16Lanes a, Float16Lanes b, Float16Lanes c) {
    return {_mm512_fmadd_ps(a.lane, b.lane, c.lane)};
  }
  friend Float16Lanes sqrt(Float16Lanes a) { return {_mm512_sqrt_ps(a.lane)}; }
  friend Float16Lanes operator+(Float16Lanes a, Float16Lanes b) {
    return {_mm512_add_ps(a.lane, b.lane)};
  }
  friend Float16Lanes operator-(Float16Lanes a, Float16Lanes b) {
    return {_mm512_sub_ps(a.lane, b.lane)};
  }
  friend Float16Lanes operator*(Float16Lanes a, Float16Lanes b) {
    return {_mm512_mul_ps(a.lane, b.lane)};
  }
  friend Float16Lanes operator/(Float16Lanes a, Float16Lanes b) {
    return {_mm512_div_ps(a.lane, b.lane)};
  }
};
using FloatLanes = Float16Lanes;

#elif defined(__AVX2__)

struct Float8Lanes {
  static constexpr int kLanes = 8;
  __m256 lane;

  static Float8Lanes fill(float value) { return {_mm256_set1_ps(value)}; }
  static Float8Lanes zero() { return {_mm256_setzero_ps()}; }
  static __m256i first(int64_t n) {
    const int count = static_cast<int>(n < 0 ? 0 : n > 8 ? 8 : n);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  // AVX2 has no masked 16-bit loads: a short row goes through eight numbers on the stack.
  static __m128i load16(const void* from, int64_t n) {
    if (n >= 8) return _mm_loadu_si128(static_cast<const __m128i*>(from));
    alignas(16) uint16_t part[8] = {};
    if (n > 0) std::memcpy(part, from, static_cast<size_t>(n) * 2);
    return _mm_load_si128(reinterpret_cast<const __m128i*>(part));
  }
  static void store16(void* to, __m128i numbers, int64_t n) {
    if (n >= 8) return _mm_storeu_si128(static_cast<__m128i*>(to), numbers);
    alignas(16) uint16_t part[8];
    _mm_store_si128(reinterpret_cast<__m128i*>(part), numbers);
    if (n > 0) std::memcpy(to, part, static_cast<size_t>(n) * 2);
  }

  template <typename T>
  static Float8Lanes load(const T* from) {
    return load(from, kLanes);
  }
  static Float8Lanes load(const float* from, int64_t n) {
    return {n >= 8 ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, first(n))};
  }
  static Float8Lanes load(const BFloat16* from, int64_t n) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(from, n)), 16))};
  }
  static Float8Lanes load(const Half* from, int64_t n) {
    return {_mm256_cvtph_ps(load16(from, n))};
  }
  void store(float* to) const { _mm256_storeu_ps(to, lane); }
  void store(float* to, int64_t n) const {
    if (n >= 8) return _mm256_storeu_ps(to, lane);
    _mm256_maskstore_ps(to, first(n), lane);
  }
  void store(BFloat16* to, int64_t n) const {
    const __m256i bits = _mm256_castps_si256(lane);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256 is_nan = _mm256_cmp_ps(lane, lane, _CMP_UNORD_Q);
    rounded = _mm256_castps_si256(_mm256_blendv_ps(
        _mm256_castsi256_ps(rounded), _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)), is_nan));
    const __m256i words = _mm256_srli_epi32(rounded, 16);
    store16(
        to, _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)), n);
  }
  void store(Half* to, int64_t n) const {
    store16(to, _mm256_cvtps_ph(lane, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), n);
  }
  float sum() const {
    alignas(32) float part[8];
    _mm256_store_ps(part, lane);
    return ((part[0] + part[4]) + (part[2] + part[6])) +
           ((part[1] + part[5]) + (part[3] + part[7]));
  }
  friend Float8Lanes fma(Float8Lanes a, Float8Lanes b, Float8Lanes c) {
    return {_mm256_fmadd_ps(a.lane, b.lane, c.lane)};
  }
  friend Float8Lanes sqrt(Float8Lanes a) { return {_mm256_sqrt_ps(a.lane)}; }
  friend Float8Lanes operator+(Float8Lanes a, Float8Lanes b) {
    return {_mm256_add_ps(a.lane, b.lane)};
  }
  friend Float8Lanes operator-(Float8Lanes a, Float8Lanes b) {
    return {_mm256_sub_ps(a.lane, b.lane)};
  }
  friend Float8Lanes operator*(Float8Lanes a, Float8Lanes b) {
    return {_mm256_mul_ps(a.lane, b.lane)};
  }
  friend Float8Lanes operator/(Float8Lanes a, Float8Lanes b) {
    return {_mm256_div_ps(a.lane, b.lane)};
  }
};
using FloatLanes = Float8Lanes;

#else

using FloatLanes = Lanes<float, 8>;

#endif

template <typename A>
struct VecOf {
  using type = FloatLanes;
};
template <>
struct VecOf<double> {
  using type = Lanes<double, 4>;
};

// The register type for a table whose stored numbers are T.
template <typename T>
using Vec = typename VecOf<typename Wide<T>::type>::type;

}  // namespace
}  // namespace varemb
