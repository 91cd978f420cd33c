// IQ4_NL: 32 weights from a 16-entry codebook, with one scale.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

constexpr int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

#pragma pack(push, 1)
struct BlockIQ4_NL {
  uint16_t d;
  uint8_t q[16];
};
#pragma pack(pop)

struct IQ4_NL : Quantized<BlockIQ4_NL, 32, 32, false> {
  static constexpr int32_t ID = 20;
  static constexpr Levels LEVELS = {-127, 113};
  static constexpr Nibbles NIBBLES = {IQ4_VALUES, 2, 18, false};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    return look_up(load(IQ4_VALUES), nibbles(block(chunk, g).q));
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int groups, Scales& out) {
    put_halves(out.scale, chunk, BYTES, groups);
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : FourBlocks<Avx512, 18, 128> {
    template <class Blocks>
    static CONIFER_INLINE W unpack(const Blocks& blocks) {
      const __m512i q = four_lanes(blocks, 2), codes = codebook(IQ4_VALUES, 128);
      const __m512 scale = blocks.template halves<0>();
      return {_mm512_shuffle_epi8(codes, low_nibbles(q)),
              _mm512_shuffle_epi8(codes, high_nibbles(q)), scale, times(scale, -128)};
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
