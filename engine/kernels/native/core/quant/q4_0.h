// Q4_0: 32 four-bit weights, offset by -8, with one scale.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockQ4_0 {
  uint16_t d;
  uint8_t q[16];
};
#pragma pack(pop)

struct Q4_0 : Quantized<BlockQ4_0, 32, 32, false> {
  static constexpr int32_t ID = 2;
  static constexpr Levels LEVELS = {-8, 7};
  static constexpr Nibbles NIBBLES = {CENTRED, 2, 18, false};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    return nibbles(block(chunk, g).q);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int groups, Scales& out) {
    put_halves(out.scale, chunk, BYTES, groups);
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : FourBlocks<Avx512, 18, 8> {
    template <class Blocks>
    static CONIFER_INLINE W unpack(const Blocks& blocks) {
      const __m512i q = four_lanes(blocks, 2);
      const __m512 scale = blocks.template halves<0>();
      return {low_nibbles(q), high_nibbles(q), scale, times(scale, -8)};
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
