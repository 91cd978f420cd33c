// IQ2_XXS: 256 weights as 32 points of 8, with their signs and a scale for every 32.
#pragma once

#include "quant/grid_format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockIQ2_XXS {
  uint16_t d;
  struct {
    uint8_t ranks[4];
    uint32_t signs;  // four times 7 bits, then the scale
  } groups[8];
};
#pragma pack(pop)

struct IQ2_XXS : Quantized<BlockIQ2_XXS, 256, 32, false> {
  static constexpr int32_t ID = 16;
  static constexpr Levels LEVELS = {-43, 43};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const BlockIQ2_XXS& b = block(chunk);
    const auto point = [&](int i) { return IQ2_XXS_GRID[b.groups[g].ranks[i]]; };
    const Bytes32 words = second_quads(load32(b.groups), load32(b.groups + 4));
    return with_signs(join(point(0), point(1), point(2), point(3)), even_signs(words), g, LEVELS);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int, Scales& out) {
    const BlockIQ2_XXS& b = block(chunk);
    uint64_t steps = 0;
    for (int i = 0; i < 8; ++i) steps |= uint64_t{b.groups[i].signs >> 28} << 8 * i;
    put_steps(out.scale, steps, 0.25f * f16_to_float(b.d), 0.5f);
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : Sixteens<Avx512, 66, 64> {
    static CONIFER_INLINE W unpack(const uint8_t* data) {
      const __m512i groups = load512(data + 2);
      const __m256i words = _mm512_cvtepi64_epi32(_mm512_srli_epi64(groups, 32));
      const __m512i ranks = _mm512_cvtepu8_epi16(_mm512_cvtepi64_epi32(groups));
      W w;
      look_up(w.q, IQ2_XXS_GRID.data(), ranks);
      apply_signs(w.q, with_parity(sign_bytes(words)), OFFSET);
      w.scale = half_steps(twice(_mm256_srli_epi32(words, 28)),
                           times(half(read_as<uint16_t>(data)), 0.25f));
      w.min = times(w.scale, -OFFSET);
      return w;
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
