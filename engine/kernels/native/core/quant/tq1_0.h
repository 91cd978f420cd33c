// TQ1_0: 256 weights of -1, 0 or 1, five to a byte, with one scale.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockTQ1_0 {
  uint8_t q[48];    // five weights each: 32 bytes for 160 weights, then 16 for 80
  uint8_t last[4];  // four weights each
  uint16_t d;
};
#pragma pack(pop)

struct TQ1_0 : Quantized<BlockTQ1_0, 256, 32, false> {
  static constexpr int32_t ID = 34;

  static constexpr Levels LEVELS = {-1, 1};

  // A byte is the fraction 0.abcde in base 3, times 256. Its first digit is a; tripling it, modulo
  // 256, moves the next digit there.
  static CONIFER_INLINE Bytes32 digits(Bytes32 v) {
    return fill32(0) - at_least(v, 86) - at_least(v, 171);
  }

  template <class Vector>
  static CONIFER_INLINE Vector tripled(Vector v, int times) {
    for (int i = 0; i < times; ++i) v = v + v + v;
    return v;
  }

  // Groups 5 to 7: five digits of 16 bytes, then four digits of four bytes.
  static CONIFER_INLINE Bytes32 last_digits(const BlockTQ1_0& b, int g) {
    const int times = 2 * (g - 5);
    const Bytes first = tripled(load(b.q + 32), times);
    if (g < 7) return digits(join(first, tripled(first, 1)));
    typedef uint32_t Quads __attribute__((vector_size(16)));
    const Bytes once = (Bytes)(Quads{} + read_integer<uint32_t>(b.last));
    const Quads thrice = (Quads)tripled(once, 1), ninth = (Quads)tripled(once, 2);
    const Quads last = (Quads)tripled(once, 3);
    return digits(join(first, (Bytes)Quads{((Quads)once)[0], thrice[0], ninth[0], last[0]}));
  }

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const BlockTQ1_0& b = block(chunk);
    return g < 5 ? digits(tripled(load32(b.q), g)) : last_digits(b, g);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int, Scales& out) {
    put_all(out.scale, 8, f16_to_float(block(chunk).d));
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : Sixteens<Avx512, 54, 1> {
    // The digits of 64 bytes, each multiplied by the power in its word.
    static CONIFER_INLINE __m512i digits(__m512i packed, __m512i powers) {
      // The upper half of a word is the shifted byte, and three times that overflows into the
      // digit.
      const __m512i upper = _mm512_set1_epi16(static_cast<int16_t>(0xff00));
      const __m512i even = _mm512_mullo_epi16(packed, _mm512_slli_epi16(powers, 8));
      const __m512i odd = _mm512_mullo_epi16(_mm512_and_si512(packed, upper), powers);
      return merge_bits(_mm512_mulhi_epu16(even, _mm512_set1_epi16(3)),
                        _mm512_mulhi_epu16(odd, _mm512_set1_epi16(3 << 8)), upper);
    }

    static CONIFER_INLINE W unpack(const uint8_t* data) {
      constexpr int P0 = 0x10001, P1 = 3 * P0, P2 = 9 * P0, P3 = 27 * P0, P4 = 81 * P0;  // in words
      const __m512i first = broadcast256(data), rest = broadcast128(data + 32);
      const __m512i last = _mm512_set1_epi32(read_as<int>(data + 48));
      W w;
      w.q[0] = digits(first, halves(P0, P1));
      w.q[1] = digits(first, halves(P2, P3));
      w.q[2] = digits(_mm512_mask_mov_epi32(first, 0xff00, rest),
                      _mm512_setr_epi32(P4, P4, P4, P4, P4, P4, P4, P4,  //
                                        P0, P0, P0, P0, P1, P1, P1, P1));
      w.q[3] = digits(_mm512_mask_mov_epi32(rest, 0xf000, last),
                      _mm512_setr_epi32(P2, P2, P2, P2, P3, P3, P3, P3,  //
                                        P4, P4, P4, P4, P0, P1, P2, P3));
      w.scale = half(read_as<uint16_t>(data + 52));
      w.min = times(w.scale, -OFFSET);
      return w;
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
