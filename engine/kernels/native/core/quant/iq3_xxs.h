// IQ3_XXS: 256 weights as 64 points of 4, with their signs and a scale for every 32.
#pragma once

#include "quant/grid_format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockIQ3_XXS {
  uint16_t d;
  uint8_t ranks[64];
  uint32_t signs[8];  // four times 7 bits, then the scale
};
#pragma pack(pop)

struct IQ3_XXS : Quantized<BlockIQ3_XXS, 256, 32, false> {
  static constexpr int32_t ID = 18;
  static constexpr Levels LEVELS = {-62, 62};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const BlockIQ3_XXS& b = block(chunk);
    const auto point = [&](int i) { return IQ3_XXS_GRID[b.ranks[8 * g + i]]; };
    return with_signs(join_points(point), even_signs(load32(b.signs)), g, LEVELS);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int, Scales& out) {
    const BlockIQ3_XXS& b = block(chunk);
    uint64_t steps = 0;
    for (int i = 0; i < 8; ++i) steps |= uint64_t{b.signs[i] >> 28} << 8 * i;
    put_steps(out.scale, steps, 0.5f * f16_to_float(b.d), 0.5f);
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : Sixteens<Avx512, 98, 64> {
    static CONIFER_INLINE W unpack(const uint8_t* data) {
      const __m256i words = load256(data + 66);
      W w;
      for (int i = 0; i < 4; ++i)
        w.q[i] = look_up(IQ3_XXS_GRID.data(), _mm512_cvtepu8_epi32(load128(data + 2 + 16 * i)));
      apply_signs(w.q, with_parity(sign_bytes(words)), OFFSET);
      w.scale = half_steps(twice(_mm256_srli_epi32(words, 28)),
                           times(half(read_as<uint16_t>(data)), 0.5f));
      w.min = times(w.scale, -OFFSET);
      return w;
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
