// Q2_0: 64 weights of -1, 0, 1 or 2 in two bits each, with one scale.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockQ2_0 {
  uint16_t d;
  uint8_t q[16];  // four weights each, the first in the low bits
};
#pragma pack(pop)

struct Q2_0 : Quantized<BlockQ2_0, 64, 32, false> {
  static constexpr int32_t ID = 42;
  static constexpr Levels LEVELS = {-1, 2};
  // The mean weight is half a scale. Rounding the scale to bfloat16 changes all products of a block
  // by the same factor, which is twice the error of activations rounded to 8 bits.
  static constexpr bool TILES = false;

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const uint64_t eight = read_integer<uint64_t>(block(chunk, g / 2).q + g % 2 * 8);
    const Bytes packed = (Bytes)Words{eight, 0};
    const Bytes four = zip_low(bits(packed, 0, 4), bits(packed, 4, 4));
    const Bytes even = bits(four, 0, 2), odd = bits(four, 2, 2);
    return join(zip_low(even, odd), zip_high(even, odd));
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int groups, Scales& out) {
    for (int i = 0; i < groups; i += 2)
      put_all(out.scale + i, 2, f16_to_float(block(chunk, i / 2).d));
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : Sixteens<Avx512, 4 * BYTES, 1> {
    static constexpr bool PARTIAL = true;

    static CONIFER_INLINE W unpack(const uint8_t* data) {
      W w;
      for (int i = 0; i < 4; ++i) {
        const __m512i q = _mm512_cvtepu8_epi32(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(data + Q2_0::BYTES * i + 2)));
        // Bits 0..3 stay, and 4..7 move to the third byte; then the upper two of each move one up.
        const __m512i pairs = _mm512_or_si512(q, _mm512_slli_epi32(q, 12));
        w.q[i] = _mm512_and_si512(_mm512_or_si512(pairs, _mm512_slli_epi32(pairs, 6)), bytes(3));
      }
      w.scale = FourWhole<Q2_0::BYTES>{data}.template halves<0>();
      w.min = times(w.scale, -OFFSET);
      return w;
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
