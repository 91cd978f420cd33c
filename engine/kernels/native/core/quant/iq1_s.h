// IQ1_S: 256 weights as 32 points of 8, all of 32 moved by an eighth, with a scale for every 32.
#pragma once

#include "quant/grid_format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockIQ1_S {
  uint16_t d;
  uint8_t ranks[32];   // the low bytes
  uint16_t groups[8];  // 3 high bits of four ranks, a 3-bit scale, and whether to move down
};
#pragma pack(pop)

struct IQ1_S : Quantized<BlockIQ1_S, 256, 32, false> {
  static constexpr int32_t ID = 19;
  static constexpr Levels LEVELS = {-9, 9};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const BlockIQ1_S& b = block(chunk);
    const int word = b.groups[g];
    const auto point = [&](int i) {
      return IQ1_GRID[static_cast<size_t>(b.ranks[4 * g + i] | (word >> 3 * i & 7) << 8)];
    };
    return join(point(0), point(1), point(2), point(3)) + fill32(word >> 15 ? 0 : 2);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int, Scales& out) {
    const BlockIQ1_S& b = block(chunk);
    uint64_t steps = 0;
    for (int i = 0; i < 8; ++i) steps |= uint64_t{b.groups[i] >> 12 & 7u} << 8 * i;
    put_steps(out.scale, steps, 0.25f * f16_to_float(b.d), 0.5f);
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : Sixteens<Avx512, 50, 9> {
    static CONIFER_INLINE W unpack(const uint8_t* data) {
      const __m256i words = _mm256_cvtepu16_epi32(load128(data + 34));
      // Fields of 3 bits to bits 8..10 of four 16-bit lanes.
      const __m512i wide = _mm512_cvtepu32_epi64(words);
      const __m512i fields = _mm512_or_si512(
          _mm512_or_si512(_mm512_slli_epi64(wide, 8), _mm512_slli_epi64(wide, 21)),
          _mm512_or_si512(_mm512_slli_epi64(wide, 34), _mm512_slli_epi64(wide, 47)));
      const __m512i high = _mm512_and_si512(fields, _mm512_set1_epi16(0x700));
      W w;
      look_up(w.q, IQ1_GRID.data(), _mm512_or_si512(high, _mm512_cvtepu8_epi16(load256(data + 2))));
      const unsigned down = static_cast<unsigned>(
          _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_slli_epi32(words, 16))));
      for (unsigned i = 0; i < 4; ++i) {  // four points in each half
        const __mmask8 up = static_cast<__mmask8>((down >> 2 * i & 1 ? 0 : 0x0f) |
                                                  (down >> (2 * i + 1) & 1 ? 0 : 0xf0));
        w.q[i] = _mm512_add_epi8(w.q[i], _mm512_maskz_set1_epi64(up, 0x0202020202020202));
      }
      const __m256i steps = _mm256_and_si256(_mm256_srli_epi32(words, 12), _mm256_set1_epi32(7));
      w.scale = half_steps(twice(steps), times(half(read_as<uint16_t>(data)), 0.25f));
      w.min = times(w.scale, -OFFSET);
      return w;
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
