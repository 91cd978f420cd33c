// IQ2_S: 256 weights as 32 points of 8, with a sign each and a four-bit scale for every 16.
#pragma once

#include "quant/grid_format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockIQ2_S {
  uint16_t d;
  uint8_t ranks[32];  // the low bytes
  uint8_t signs[32];
  uint8_t high[8];  // the high two bits of four ranks
  uint8_t scales[8];
};
#pragma pack(pop)

struct IQ2_S : Quantized<BlockIQ2_S, 256, 16, false> {
  static constexpr int32_t ID = 22;
  static constexpr Levels LEVELS = {-43, 43};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const BlockIQ2_S& b = block(chunk);
    const auto point = [&](int i) {
      return IQ2_S_GRID[static_cast<size_t>(b.ranks[4 * g + i] | (b.high[g] >> 2 * i & 3) << 8)];
    };
    return with_signs(join(point(0), point(1), point(2), point(3)), load32(b.signs), g, LEVELS);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int, Scales& out) {
    put_half_steps(out, block(chunk).scales, 0.25f * f16_to_float(block(chunk).d));
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : Sixteens<Avx512, 82, 64> {
    static CONIFER_INLINE W unpack(const uint8_t* data) {
      // Fields of two bits to bytes.
      __m256i high =
          _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(data + 66)));
      high = _mm256_or_si256(high, _mm256_slli_epi32(high, 12));
      high = _mm256_or_si256(high, _mm256_slli_epi32(high, 6));
      high = _mm256_and_si256(high, _mm256_set1_epi8(3));
      const __m512i ranks = _mm512_or_si512(_mm512_cvtepu8_epi16(load256(data + 2)),
                                            _mm512_slli_epi16(_mm512_cvtepu8_epi16(high), 8));
      W w;
      look_up(w.q, IQ2_S_GRID.data(), ranks);
      apply_signs(w.q, load256(data + 34), OFFSET);
      w.scale = half_steps(sixteen_nibbles(data + 74), times(half(read_as<uint16_t>(data)), 0.25f));
      w.min = times(w.scale, -OFFSET);
      return w;
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
