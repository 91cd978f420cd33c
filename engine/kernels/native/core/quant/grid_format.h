// Helpers shared by the types whose blocks store ranks of grid points: IQ1, IQ2 and IQ3.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"
#include "quant/grids.h"

namespace conifer::quant {
namespace {

// Add the eighth sign to seven in each byte: it makes the number of negative weights even.
CONIFER_INLINE Bytes32 with_parity(Bytes32 sevens) {
  constexpr uint8_t O = 128;
  const Bytes odd = {0, O, O, 0, O, 0, 0, O, O, 0, 0, O, 0, O, O, 0};
  const Bytes32 folded = sevens ^ bits(sevens, 4, 3);
  return sevens | look_up(odd, bits(folded, 0, 4));
}

// The sign bytes of eight words with four times 7 bits.
CONIFER_INLINE Bytes32 even_signs(Bytes32 words) {
  return with_parity(map_quads(words, [](auto w) __attribute__((always_inline)) {
    const auto halves = (w & 0x00003fff) | (w & 0x0fffc000) << 2;
    return (halves & 0x007f007f) | (halves & 0x3f803f80) << 1;
  }));
}

// Negate the points whose bit is set in group g of `signs`, and move all up by the offset.
CONIFER_INLINE Bytes32 with_signs(Bytes32 points, Bytes32 signs, int g, Levels levels) {
  const Bytes32 negative = set_bits(signs, g);
  return (points ^ negative) - negative + fill32(levels.offset());
}

// Eight points of 4 weights.
template <class Point>
CONIFER_INLINE Bytes32 join_points(Point point) {
  return join((Bytes)Quads{point(0), point(1), point(2), point(3)},
              (Bytes)Quads{point(4), point(5), point(6), point(7)});
}

// Scales of factor * (step + 1/2), for the 16 nibbles of 8 bytes.
CONIFER_INLINE void put_half_steps(Scales& out, const uint8_t* packed, float factor) {
  for (int i = 0; i < 2; ++i)
    put_steps(out.scale + 8 * i, spread_nibbles(read_integer<uint32_t>(packed + 4 * i)), factor,
              0.5f);
}

#if defined(CONIFER_AVX512)

// Spread the low 28 bits of each of 8 words over four bytes, and add the eighth signs.
CONIFER_INLINE __m256i sign_bytes(__m256i words) {
  const auto both = [](__m256i v, int a, int b, int shift) {
    const __m256i low = _mm256_and_si256(v, _mm256_set1_epi32(a));
    const __m256i high = _mm256_and_si256(v, _mm256_set1_epi32(b));
    return _mm256_or_si256(low, _mm256_slli_epi32(high, shift));
  };
  const __m256i halves = both(words, 0x00003fff, 0x0fffc000, 2);
  return both(halves, 0x007f007f, 0x3f803f80, 1);
}

CONIFER_INLINE __m256i with_parity(__m256i seven) {
  __m256i folded = _mm256_xor_si256(seven, _mm256_srli_epi32(seven, 4));
  folded = _mm256_and_si256(folded, _mm256_set1_epi8(15));
  const __m256i odd = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
  return _mm256_or_si256(seven, _mm256_shuffle_epi8(odd, folded));
}

// Write 256 weights, moved up by `offset`: points, negated where the bit in `signs` is set.
CONIFER_INLINE void apply_signs(__m512i (&q)[4], __m256i signs, int offset) {
  alignas(32) uint64_t negative[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(negative), signs);
  const __m512i middle = bytes(offset);
  for (int i = 0; i < 4; ++i)
    q[i] = _mm512_mask_sub_epi8(_mm512_add_epi8(middle, q[i]), negative[i], middle, q[i]);
}

CONIFER_INLINE __m128i load128(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}

CONIFER_INLINE __m256i load256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

// 16 points of 4 weights, or 8 points of 8.
CONIFER_INLINE __m512i look_up(const uint32_t* grid, __m512i ranks) {
  return _mm512_i32gather_epi32(ranks, grid, 4);
}

CONIFER_INLINE __m512i look_up(const uint64_t* grid, __m256i ranks) {
  return _mm512_i32gather_epi64(ranks, grid, 8);
}

// 32 points of 8 weights, by ranks of 16 bits.
CONIFER_INLINE void look_up(__m512i (&q)[4], const uint64_t* grid, __m512i ranks) {
  q[0] = look_up(grid, _mm256_cvtepu16_epi32(_mm512_castsi512_si128(ranks)));
  q[1] = look_up(grid, _mm256_cvtepu16_epi32(_mm512_extracti32x4_epi32(ranks, 1)));
  q[2] = look_up(grid, _mm256_cvtepu16_epi32(_mm512_extracti32x4_epi32(ranks, 2)));
  q[3] = look_up(grid, _mm256_cvtepu16_epi32(_mm512_extracti32x4_epi32(ranks, 3)));
}

// Give each of 8 numbers two lanes.
CONIFER_INLINE __m512 twice(__m256i numbers) {
  const __m512i index = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return _mm512_cvtepi32_ps(_mm512_permutexvar_epi32(index, _mm512_castsi256_si512(numbers)));
}

// The nibbles of 8 bytes, low nibbles first, as floats.
CONIFER_INLINE __m512 sixteen_nibbles(const uint8_t* packed) {
  const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed));
  const __m128i both = _mm_unpacklo_epi8(low, _mm_srli_epi16(low, 4));
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(both, _mm_set1_epi8(15))));
}

// factor * (steps + 1/2)
CONIFER_INLINE __m512 half_steps(__m512 steps, __m512 factor) {
  return _mm512_mul_ps(_mm512_add_ps(steps, _mm512_set1_ps(0.5f)), factor);
}

#endif

}  // namespace
}  // namespace conifer::quant
