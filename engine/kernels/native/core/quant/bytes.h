// Vectors of 16 and 32 bytes in types that GCC and Clang support on every machine, and the few
// operations that block types need. Included by the translation units of several instruction sets,
// so everything has internal linkage.
#pragma once

#include <cstdint>
#include <cstring>

#include "isa/inline.h"
#include "quant/half.h"

#if defined(__SSSE3__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace conifer::quant {
namespace {

template <class Integer>
CONIFER_INLINE Integer read_integer(const void* p) {
  Integer value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// ---- 16 bytes.

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint64_t Words __attribute__((vector_size(16)));
typedef uint32_t Quads __attribute__((vector_size(16)));

CONIFER_INLINE Bytes load(const void* p) { return read_integer<Bytes>(p); }

CONIFER_INLINE Bytes fill(int byte) { return Bytes{} + static_cast<uint8_t>(byte); }

// Move `count` bits of each byte from bit `from` to bit `to`, and clear the rest.
CONIFER_INLINE Bytes bits(Bytes v, int from, int count, int to = 0) {
  typedef uint16_t Halves __attribute__((vector_size(16)));  // there are no shifts of bytes
  const Halves moved = from > to ? (Halves)v >> (from - to) : (Halves)v << (to - from);
  return (Bytes)moved & fill(((1 << count) - 1) << to);
}

// Look up values[index] for 16 indices below 16.
CONIFER_INLINE Bytes look_up(Bytes values, Bytes index) {
#if defined(__SSSE3__)
  return (Bytes)_mm_shuffle_epi8((__m128i)values, (__m128i)index);
#elif defined(__aarch64__)
  return (Bytes)vqtbl1q_u8((uint8x16_t)values, (uint8x16_t)index);
#else
  uint8_t table[16], at[16];  // element by element, vectors are slow
  std::memcpy(table, &values, 16);
  std::memcpy(at, &index, 16);
  for (uint8_t& i : at) i = table[i];
  return load(at);
#endif
}

// Interleave the first or second halves: (a0, b0, a1, b1, ...).
CONIFER_INLINE Bytes zip_low(Bytes a, Bytes b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

CONIFER_INLINE Bytes zip_high(Bytes a, Bytes b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
}

// 255 for each bit set in the low 16 bits, and 0 for the rest.
CONIFER_INLINE Bytes set_bits(uint32_t mask) {
  constexpr uint64_t EACH = 0x0101010101010101;
  const Bytes spread = (Bytes)Words{(mask & 255) * EACH, (mask >> 8 & 255) * EACH};
  const Bytes bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  return (Bytes)((spread & bit) != 0);
}

// ---- 32 bytes.

#if defined(__AVX2__)

typedef uint8_t Bytes32 __attribute__((vector_size(32)));

CONIFER_INLINE Bytes32 join(Bytes low, Bytes high) {
  return (Bytes32)_mm256_set_m128i((__m128i)high, (__m128i)low);
}

CONIFER_INLINE Bytes32 load32(const void* p) { return read_integer<Bytes32>(p); }

CONIFER_INLINE Bytes32 fill32(int byte) { return Bytes32{} + static_cast<uint8_t>(byte); }

CONIFER_INLINE Bytes32 bits(Bytes32 v, int from, int count, int to = 0) {
  const __m256i moved = from > to ? _mm256_srli_epi16((__m256i)v, from - to)
                                  : _mm256_slli_epi16((__m256i)v, to - from);
  return (Bytes32)moved & fill32(((1 << count) - 1) << to);
}

CONIFER_INLINE Bytes32 look_up(Bytes values, Bytes32 index) {
  return (Bytes32)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256((__m128i)values), (__m256i)index);
}

// 255 for each bit set in bytes 4 part .. 4 part + 3 of v.
CONIFER_INLINE Bytes32 set_bits(Bytes32 v, int part) {
  const __m256i both = part < 4 ? _mm256_permute2x128_si256((__m256i)v, (__m256i)v, 0x00)
                                : _mm256_permute2x128_si256((__m256i)v, (__m256i)v, 0x11);
  const __m256i index = _mm256_add_epi8(
      _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303),
      _mm256_set1_epi8(static_cast<char>(part % 4 * 4)));
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  const __m256i spread = _mm256_shuffle_epi8(both, index);
  return (Bytes32)_mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
}

CONIFER_INLINE Bytes32 set_bits32(uint32_t mask) {
  return set_bits((Bytes32)_mm256_set1_epi32(static_cast<int32_t>(mask)), 0);
}

// The low nibbles of 16 bytes, then the high nibbles.
CONIFER_INLINE Bytes32 nibbles(const uint8_t* packed) {
  const __m256i twice =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)));
  return (Bytes32)_mm256_srlv_epi32(twice, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4)) & fill32(15);
}

// Exchange the second and third eight bytes.
CONIFER_INLINE Bytes32 swap_middle(Bytes32 v) {
  return (Bytes32)_mm256_permute4x64_epi64((__m256i)v, 0xd8);
}

// The second of each pair of 4-byte numbers, in order.
CONIFER_INLINE Bytes32 second_quads(Bytes32 a, Bytes32 b) {
  return swap_middle((Bytes32)_mm256_shuffle_ps((__m256)a, (__m256)b, 0xdd));
}

// The second of each pair of bytes, in order.
CONIFER_INLINE Bytes32 high_bytes(Bytes32 a, Bytes32 b) {
  return swap_middle((Bytes32)_mm256_packus_epi16(_mm256_srli_epi16((__m256i)a, 8),
                                                  _mm256_srli_epi16((__m256i)b, 8)));
}

CONIFER_INLINE Bytes32 at_least(Bytes32 v, int byte) {  // 255 where it holds
  return (Bytes32)(v >= fill32(byte));
}

#else

struct Bytes32 {
  Bytes low, high;
};

#define X(op)                                                \
  CONIFER_INLINE Bytes32 operator op(Bytes32 a, Bytes32 b) { \
    return {a.low op b.low, a.high op b.high};               \
  }
X(|)
X(&)
X(^) X(+) X(-)
#undef X

    CONIFER_INLINE Bytes32 join(Bytes low, Bytes high) {
  return {low, high};
}

CONIFER_INLINE Bytes32 load32(const void* p) {
  return {load(p), load(static_cast<const uint8_t*>(p) + 16)};
}

CONIFER_INLINE Bytes32 fill32(int byte) { return {fill(byte), fill(byte)}; }

CONIFER_INLINE Bytes32 bits(Bytes32 v, int from, int count, int to = 0) {
  return {bits(v.low, from, count, to), bits(v.high, from, count, to)};
}

CONIFER_INLINE Bytes32 look_up(Bytes values, Bytes32 index) {
  return {look_up(values, index.low), look_up(values, index.high)};
}

CONIFER_INLINE Bytes32 set_bits32(uint32_t mask) { return {set_bits(mask), set_bits(mask >> 16)}; }

CONIFER_INLINE Bytes32 set_bits(Bytes32 v, int part) {
  return set_bits32(((Quads)(part < 4 ? v.low : v.high))[part % 4]);
}

CONIFER_INLINE Bytes32 nibbles(const uint8_t* packed) {
  const Bytes v = load(packed);
  return {bits(v, 0, 4), bits(v, 4, 4)};
}

CONIFER_INLINE Bytes32 swap_middle(Bytes32 v) {
  const Words low = (Words)v.low, high = (Words)v.high;
  return {(Bytes)Words{low[0], high[0]}, (Bytes)Words{low[1], high[1]}};
}

CONIFER_INLINE Bytes32 second_quads(Bytes32 a, Bytes32 b) {
  return {(Bytes)__builtin_shufflevector((Quads)a.low, (Quads)a.high, 1, 3, 5, 7),
          (Bytes)__builtin_shufflevector((Quads)b.low, (Quads)b.high, 1, 3, 5, 7)};
}

CONIFER_INLINE Bytes high_bytes(Bytes a, Bytes b) {
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

CONIFER_INLINE Bytes32 high_bytes(Bytes32 a, Bytes32 b) {
  return {high_bytes(a.low, a.high), high_bytes(b.low, b.high)};
}

CONIFER_INLINE Bytes32 at_least(Bytes32 v, int byte) {
  return {(Bytes)(v.low >= fill(byte)), (Bytes)(v.high >= fill(byte))};
}

#endif

CONIFER_INLINE void store32(void* p, Bytes32 v) { std::memcpy(p, &v, 32); }

// Four words of eight bytes.
CONIFER_INLINE Bytes32 join(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
  return join((Bytes)Words{a, b}, (Bytes)Words{c, d});
}

// Apply f, which takes vectors of any size, to numbers of 32 bits.
template <class F>
CONIFER_INLINE Bytes32 map_quads(Bytes32 v, F f) {
#if defined(__AVX2__)
  typedef uint32_t Quads32 __attribute__((vector_size(32)));
  return (Bytes32)f((Quads32)v);
#else
  return {(Bytes)f((Quads)v.low), (Bytes)f((Quads)v.high)};
#endif
}

}  // namespace
}  // namespace conifer::quant
