// Q6_K: 256 six-bit weights, offset by -32, with an eight-bit scale for every 16. The top two bits
// are stored separately.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockQ6_K {
  uint8_t q[128];
  uint8_t high[64];
  int8_t scales[16];  // one for each 16 weights
  uint16_t d;
};
#pragma pack(pop)

struct Q6_K : Quantized<BlockQ6_K, 256, 16, false> {
  static constexpr int32_t ID = 14;
  static constexpr Levels LEVELS = {-32, 31};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const BlockQ6_K& b = block(chunk);
    const int half = g / 4, i = g % 4;
    return bits(load32(b.q + 64 * half + 32 * (i % 2)), 4 * (i / 2), 4) |
           bits(load32(b.high + 32 * half), 2 * i, 2, 4);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int, Scales& out) {
    const BlockQ6_K& b = block(chunk);
    const float d = f16_to_float(b.d);
    const Words steps = (Words)(load(b.scales) ^ fill(128));  // unsigned
    for (int i = 0; i < 2; ++i) put_steps(out.scale + 8 * i, steps[i], d, -128);
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : Sixteens<Avx512, 210, 32> {
    static CONIFER_INLINE W unpack(const uint8_t* data) {
      const __m512 scales = _mm512_cvtepi32_ps(
          _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data + 192))));
      W w;
      w.scale = _mm512_mul_ps(scales, half(read_as<uint16_t>(data + 208)));
      w.min = times(w.scale, -32);
      for (int i = 0; i < 2; ++i) {
        const __m512i q = load512(data + 64 * i), high = broadcast256(data + 128 + 32 * i);
        const __m512i mask = bytes(0x30);
        w.q[2 * i] = merge_bits(low_nibbles(q), _mm512_rolv_epi32(high, halves(4, 2)), mask);
        w.q[2 * i + 1] = merge_bits(high_nibbles(q), _mm512_rolv_epi32(high, halves(0, 30)), mask);
      }
      return w;
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
