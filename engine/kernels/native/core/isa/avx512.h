// Helpers shared by the AVX-512 kernels. Everything has internal linkage.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "isa/inline.h"

namespace conifer::isa {
namespace {

CONIFER_INLINE __m512i load512(const void* p) { return _mm512_loadu_si512(p); }

CONIFER_INLINE __m512i broadcast128(const void* p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}

CONIFER_INLINE __m512i broadcast256(const void* p) {
  return _mm512_broadcast_i64x4(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}

CONIFER_INLINE __m512i bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }

CONIFER_INLINE __m512i low_nibbles(__m512i q) { return _mm512_and_si512(q, bytes(15)); }

CONIFER_INLINE __m512i high_nibbles(__m512i q) {
  return _mm512_and_si512(_mm512_srli_epi16(q, 4), bytes(15));
}

// low | (bits & mask)
CONIFER_INLINE __m512i merge_bits(__m512i low, __m512i bits, __m512i mask) {
  return _mm512_ternarylogic_epi32(low, bits, mask, 0xf8);
}

CONIFER_INLINE __m512 dots(__m512i w, __m512i x) {
  return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), w, x));
}

CONIFER_INLINE __m512 dots(__m512i w0, __m512i x0, __m512i w1, __m512i x1) {
  const __m512i first = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w0, x0);
  return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(first, w1, x1));
}

// Select lanes of v by four indices, each repeated four times.
CONIFER_INLINE __m512 spread(__m512 v, int a, int b, int c, int d) {
  return _mm512_permutexvar_ps(_mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d),
                               v);
}

CONIFER_INLINE __m512 times(__m512 v, float factor) {
  return _mm512_mul_ps(v, _mm512_set1_ps(factor));
}

// Broadcast a half to every lane.
CONIFER_INLINE __m512 half(uint16_t d) {
  return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(d)));
}

// Convert four halves, each repeated in four lanes.
CONIFER_INLINE __m512 spread_halves(uint64_t four) {
  const __m256i index = _mm256_setr_epi16(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  const __m128i halves = _mm_cvtsi64_si128(static_cast<int64_t>(four));
  return _mm512_cvtph_ps(_mm256_permutexvar_epi16(index, _mm256_castsi128_si256(halves)));
}

// Convert the halves w[a], w[b], w[c], w[d] of a vector, each repeated in four lanes.
template <int a, int b, int c, int d>
CONIFER_INLINE __m512 spread_words(__m512i w) {
  const __m512i index =
      _mm512_castsi256_si512(_mm256_setr_epi16(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d));
  return _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(index, w)));
}

template <class T>
CONIFER_INLINE T read_as(const void* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

}  // namespace
}  // namespace conifer::isa
