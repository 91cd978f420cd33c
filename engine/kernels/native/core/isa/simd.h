// A float vector type for kernels that are compiled once per instruction set. Everything has
// internal linkage, because translation units with different flags must not share code.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "isa/inline.h"
#include "quant/half.h"

namespace conifer::isa {
namespace {

#if defined(__AVX512F__)
constexpr int W = 16;  // floats per vector
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float VF __attribute__((vector_size(4 * W)));
typedef uint32_t VU __attribute__((vector_size(4 * W)));
typedef float UnalignedVF __attribute__((vector_size(4 * W), aligned(4), may_alias));

CONIFER_INLINE VF load(const float* p) { return *reinterpret_cast<const UnalignedVF*>(p); }
CONIFER_INLINE void store(float* p, VF v) { *reinterpret_cast<UnalignedVF*>(p) = v; }
CONIFER_INLINE VF fill(float x) { return VF{} + x; }
CONIFER_INLINE VF larger(VF a, VF b) { return a > b ? a : b; }
CONIFER_INLINE VF smaller(VF a, VF b) { return a < b ? a : b; }

// Interleave the first or second halves: (a0, b0, a1, b1, ...).
CONIFER_INLINE VF zip_low(VF a, VF b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}

CONIFER_INLINE VF zip_high(VF a, VF b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

// Sum the lanes of W vectors: lane i of the result is the sum of v[i].
template <int N = W, int STEP = 1>
CONIFER_INLINE VF sum_each(const VF* v) {
  if constexpr (N == 1) {
    return v[0];
  } else {
    const VF even = sum_each<N / 2, 2 * STEP>(v), odd = sum_each<N / 2, 2 * STEP>(v + STEP);
    return zip_low(even, odd) + zip_high(even, odd);
  }
}

// Transpose W rows of W floats in place.
CONIFER_INLINE void transpose(VF* v) {
#pragma GCC unroll 5
  for (int stage = 1; stage < W; stage *= 2) {
    VF u[W];
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; ++i) {
      u[2 * i] = zip_low(v[i], v[i + W / 2]);
      u[2 * i + 1] = zip_high(v[i], v[i + W / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) v[i] = u[i];
  }
}

CONIFER_INLINE float sum(VF v) {
  float lanes[W], total = 0.0f;
  store(lanes, v);
  for (float x : lanes) total += x;
  return total;
}

CONIFER_INLINE float largest(VF v) {
  float lanes[W];
  store(lanes, v);
  float top = lanes[0];
  for (float x : lanes) top = x > top ? x : top;
  return top;
}

// e^x, accurate to 2 units in the last place for -64 < x < 88; x is clamped to that range. Smaller
// results are negligible compared with 1, and their products would be subnormal, which is slow.
CONIFER_INLINE VF exponential(VF x) {
  constexpr float ROUND =
      12582912.0f;  // 1.5 * 2^23; adding it rounds to an integer in the low bits
  x = smaller(larger(x, fill(-64.0f)), fill(88.0f));
  const VF shifted = x * 1.44269504f + ROUND;
  const VF n = shifted - ROUND;
  const VF r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  VF p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  const VU power = ((VU)shifted + 127) << 23;  // the low bits of `shifted` are n
  return p * (VF)power;
}

CONIFER_INLINE VF load_half(const uint16_t* p) {
#if defined(__AVX512F__)
  return (VF)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (VF)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__aarch64__)
  return (VF)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
  return VF{quant::f16_to_float(p[0]), quant::f16_to_float(p[1]), quant::f16_to_float(p[2]),
            quant::f16_to_float(p[3])};
#endif
}

CONIFER_INLINE void store_half(uint16_t* p, VF v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v)));
#else
  for (int i = 0; i < W; ++i) p[i] = quant::float_to_f16(v[i]);
#endif
}

CONIFER_INLINE VF load_int8(const int8_t* p) {
#if defined(__AVX512F__)
  return (VF)_mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return (VF)_mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  return VF{float(p[0]), float(p[1]), float(p[2]), float(p[3])};
#endif
}

}  // namespace
}  // namespace conifer::isa
