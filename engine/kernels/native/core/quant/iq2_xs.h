// IQ2_XS: 256 weights as 32 points of 8 with 7 signs each, and a four-bit scale for every 16.
#pragma once

#include "quant/grid_format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockIQ2_XS {
  uint16_t d;
  uint16_t points[32];  // 9 bits rank, 7 bits signs
  uint8_t scales[8];
};
#pragma pack(pop)

struct IQ2_XS : Quantized<BlockIQ2_XS, 256, 16, false> {
  static constexpr int32_t ID = 17;
  static constexpr Levels LEVELS = {-43, 43};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const BlockIQ2_XS& b = block(chunk);
    const auto point = [&](int i) { return IQ2_XS_GRID[b.points[4 * g + i] & 511]; };
    const Bytes32 sevens = bits(high_bytes(load32(b.points), load32(b.points + 16)), 1, 7);
    return with_signs(join(point(0), point(1), point(2), point(3)), with_parity(sevens), g, LEVELS);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int, Scales& out) {
    put_half_steps(out, block(chunk).scales, 0.25f * f16_to_float(block(chunk).d));
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : Sixteens<Avx512, 74, 64> {
    static CONIFER_INLINE W unpack(const uint8_t* data) {
      const __m512i points = load512(data + 2);
      W w;
      look_up(w.q, IQ2_XS_GRID.data(), _mm512_and_si512(points, _mm512_set1_epi16(511)));
      const __m256i seven = _mm512_cvtepi16_epi8(_mm512_srli_epi16(points, 9));
      apply_signs(w.q, with_parity(seven), OFFSET);
      w.scale = half_steps(sixteen_nibbles(data + 66), times(half(read_as<uint16_t>(data)), 0.25f));
      w.min = times(w.scale, -OFFSET);
      return w;
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
