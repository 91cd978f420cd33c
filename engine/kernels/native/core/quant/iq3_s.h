// IQ3_S: 256 weights as 64 points of 4, with a sign each and a four-bit scale for every 32.
#pragma once

#include "quant/grid_format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockIQ3_S {
  uint16_t d;
  uint8_t ranks[64];  // the low bytes
  uint8_t ninth[8];   // their ninth bits
  uint8_t signs[32];
  uint8_t scales[4];
};
#pragma pack(pop)

struct IQ3_S : Quantized<BlockIQ3_S, 256, 32, false> {
  static constexpr int32_t ID = 21;
  static constexpr Levels LEVELS = {-15, 15};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const BlockIQ3_S& b = block(chunk);
    const auto point = [&](int i) {
      return IQ3_S_GRID[static_cast<size_t>(b.ranks[8 * g + i] | (b.ninth[g] >> i & 1) << 8)];
    };
    return with_signs(join_points(point), load32(b.signs), g, LEVELS);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int, Scales& out) {
    const uint64_t steps = spread_nibbles(read_integer<uint32_t>(block(chunk).scales));
    put_steps(out.scale, steps, 2 * f16_to_float(block(chunk).d), 0.5f);
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : Sixteens<Avx512, 110, 16> {
    static CONIFER_INLINE W unpack(const uint8_t* data) {
      W w;
      for (int i = 0; i < 4; ++i) {
        const __m512i low = _mm512_cvtepu8_epi32(load128(data + 2 + 16 * i));
        const __mmask16 ninth = read_as<uint16_t>(data + 66 + 2 * i);
        const __m512i ranks = _mm512_mask_add_epi32(low, ninth, low, _mm512_set1_epi32(256));
        w.q[i] = look_up(IQ3_S_GRID.data(), ranks);
      }
      apply_signs(w.q, load256(data + 74), OFFSET);
      uint64_t nibbles = read_as<uint32_t>(data + 106);
      nibbles = (nibbles | nibbles << 16) & 0x0000ffff0000ffff;
      nibbles = (nibbles | nibbles << 8) & 0x00ff00ff00ff00ff;
      nibbles = (nibbles | nibbles << 4) & 0x0f0f0f0f0f0f0f0f;
      const __m128i steps = _mm_cvtsi64_si128(static_cast<int64_t>(nibbles));
      w.scale =
          half_steps(twice(_mm256_cvtepu8_epi32(steps)), times(half(read_as<uint16_t>(data)), 2));
      w.min = times(w.scale, -OFFSET);
      return w;
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
