// Q2_K: 256 two-bit weights, with a four-bit scale and minimum for every 16.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockQ2_K {
  uint8_t scales[16];  // for each 16 weights: low nibble scale, high nibble minimum
  uint8_t q[64];
  uint16_t d, dmin;
};
#pragma pack(pop)

struct Q2_K : Quantized<BlockQ2_K, 256, 16, true> {
  static constexpr int32_t ID = 10;
  static constexpr Levels LEVELS = {0, 3};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    return bits(load32(block(chunk).q + 32 * (g / 4)), 2 * (g % 4), 2);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int, Scales& out) {
    const BlockQ2_K& b = block(chunk);
    const float d = f16_to_float(b.d), dmin = -f16_to_float(b.dmin);
    const Bytes packed = load(b.scales);
    const Words scale = (Words)bits(packed, 0, 4), min = (Words)bits(packed, 4, 4);
    for (int i = 0; i < 2; ++i) {
      put_steps(out.scale + 8 * i, scale[i], d);
      put_steps(out.min + 8 * i, min[i], dmin);
    }
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : Sixteens<Avx512, 84, 0, true> {
    static CONIFER_INLINE W unpack(const uint8_t* data) {
      const __m512i packed =
          _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data)));
      W w;
      w.scale = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_and_si512(packed, _mm512_set1_epi32(15))),
                              half(read_as<uint16_t>(data + 80)));
      w.min = times(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(packed, 4)),
                                  half(read_as<uint16_t>(data + 82))),
                    -1);
      for (int i = 0; i < 4; ++i) {
        const __m512i q = broadcast256(data + 16 + 32 * (i / 2));
        w.q[i] =
            _mm512_and_si512(_mm512_srlv_epi32(q, i % 2 ? halves(4, 6) : halves(0, 2)), bytes(3));
      }
      return w;
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
