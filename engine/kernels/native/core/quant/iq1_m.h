// IQ1_M: 256 weights as 32 points of 8, each moved by an eighth, with a 3-bit scale for every 16.
#pragma once

#include "quant/grid_format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockIQ1_M {
  uint8_t ranks[32];   // the low bytes
  uint8_t high[16];    // a nibble for each rank: 3 high bits, and whether to move down
  uint16_t scales[4];  // four 3-bit scales each; the high nibbles make d
};
#pragma pack(pop)

struct IQ1_M : Quantized<BlockIQ1_M, 256, 16, false> {
  static constexpr int32_t ID = 29;
  static constexpr Levels LEVELS = {-9, 9};

  static float scale(const uint16_t* words) {
    uint16_t d = 0;
    for (int i = 0; i < 4; ++i) d = static_cast<uint16_t>(d | words[i] >> 12 << 4 * i);
    return f16_to_float(d);
  }

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const BlockIQ1_M& b = block(chunk);
    const auto point = [&](int i) {
      const int nibble = b.high[2 * g + i / 2] >> 4 * (i % 2) & 15;
      return IQ1_GRID[static_cast<size_t>(b.ranks[4 * g + i] | (nibble & 7) << 8)] +
             (nibble >> 3 ^ 1) * 0x0202020202020202;  // no branch: the bits are random
    };
    return join(point(0), point(1), point(2), point(3));
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int, Scales& out) {
    uint16_t words[4];
    std::memcpy(words, block(chunk).scales, 8);
    const float d = 0.25f * scale(words);
    for (int i = 0; i < 16; ++i)
      out.scale[i] = d * (static_cast<float>(words[i / 4] >> 3 * (i % 4) & 7) + 0.5f);
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : Sixteens<Avx512, 56, 9> {
    static CONIFER_INLINE W unpack(const uint8_t* data) {
      const __m128i packed = load128(data + 32);
      const __m128i low = _mm_unpacklo_epi8(packed, _mm_srli_epi16(packed, 4));
      const __m128i high = _mm_unpackhi_epi8(packed, _mm_srli_epi16(packed, 4));
      const __m512i nibbles = _mm512_cvtepu8_epi16(_mm256_set_m128i(high, low));
      const __m512i ranks =
          _mm512_or_si512(_mm512_and_si512(_mm512_slli_epi16(nibbles, 8), _mm512_set1_epi16(0x700)),
                          _mm512_cvtepu8_epi16(load256(data)));
      const __mmask32 up = _mm512_testn_epi16_mask(nibbles, _mm512_set1_epi16(8));
      W w;
      look_up(w.q, IQ1_GRID.data(), ranks);
      for (int i = 0; i < 4; ++i)
        w.q[i] = _mm512_add_epi8(w.q[i], _mm512_maskz_set1_epi64(static_cast<__mmask8>(up >> 8 * i),
                                                                 0x0202020202020202));
      uint16_t words[4];
      std::memcpy(words, data + 48, 8);
      const __m512i wide = _mm512_permutexvar_epi32(
          _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
          _mm512_castsi128_si512(
              _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(data + 48)))));
      const __m512i shifts = _mm512_setr_epi32(0, 3, 6, 9, 0, 3, 6, 9, 0, 3, 6, 9, 0, 3, 6, 9);
      const __m512i steps = _mm512_and_si512(_mm512_srlv_epi32(wide, shifts), _mm512_set1_epi32(7));
      w.scale = half_steps(_mm512_cvtepi32_ps(steps), _mm512_set1_ps(0.25f * scale(words)));
      w.min = times(w.scale, -OFFSET);
      return w;
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
