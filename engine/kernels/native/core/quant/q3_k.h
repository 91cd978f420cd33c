// Q3_K: 256 three-bit weights, offset by -4, with a six-bit scale for every 16. The third bits are
// stored separately.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockQ3_K {
  uint8_t high[32];
  uint8_t q[64];
  uint8_t scales[12];  // 16 six-bit scales, offset by -32
  uint16_t d;
};
#pragma pack(pop)

struct Q3_K : Quantized<BlockQ3_K, 256, 16, false> {
  static constexpr int32_t ID = 11;
  static constexpr Levels LEVELS = {-4, 3};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const BlockQ3_K& b = block(chunk);
    return bits(load32(b.q + 32 * (g / 4)), 2 * (g % 4), 2) | bits(load32(b.high), g, 1, 2);
  }

  // 16 six-bit scales as bytes, in two words.
  static CONIFER_INLINE void steps(const uint8_t* chunk, uint64_t (&out)[2]) {
    const uint64_t low = read_integer<uint64_t>(chunk + 96);
    const uint64_t rest = read_integer<uint32_t>(chunk + 104), twice = rest | rest << 30;
    // Two bits from each byte of `rest` in turn: 0..3, 4..7, 8..11, then 12..15.
    out[0] = (low & 0x0f0f0f0f0f0f0f0f) | (twice << 4 & 0x3030303030303030);
    out[1] = (low >> 4 & 0x0f0f0f0f0f0f0f0f) | (twice & 0x3030303030303030);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int, Scales& out) {
    const float d = f16_to_float(block(chunk).d);
    uint64_t sixteen[2];
    steps(chunk, sixteen);
    for (int i = 0; i < 2; ++i) put_steps(out.scale + 8 * i, sixteen[i], d, -32);
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : Sixteens<Avx512, 110, 4> {
    static CONIFER_INLINE W unpack(const uint8_t* data) {
      uint64_t sixteen[2];
      steps(data, sixteen);
      const __m128i packed =
          _mm_set_epi64x(static_cast<int64_t>(sixteen[1]), static_cast<int64_t>(sixteen[0]));
      const __m512i scale = _mm512_sub_epi32(_mm512_cvtepu8_epi32(packed), _mm512_set1_epi32(32));
      W w;
      w.scale = _mm512_mul_ps(_mm512_cvtepi32_ps(scale), half(read_as<uint16_t>(data + 108)));
      w.min = times(w.scale, -4);
      const __m512i high = broadcast256(data);
      for (int i = 0; i < 4; ++i) {
        const __m512i q = broadcast256(data + 32 + 32 * (i / 2));
        const __m512i two =
            _mm512_and_si512(_mm512_srlv_epi32(q, i % 2 ? halves(4, 6) : halves(0, 2)), bytes(3));
        const __m512i turn = halves((34 - 2 * i) % 32, (33 - 2 * i) % 32);
        w.q[i] = merge_bits(two, _mm512_rolv_epi32(high, turn), bytes(4));
      }
      return w;
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
