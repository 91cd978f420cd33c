// Q4_1: 32 four-bit weights, with one scale and one minimum.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockQ4_1 {
  uint16_t d, m;
  uint8_t q[16];
};
#pragma pack(pop)

struct Q4_1 : Quantized<BlockQ4_1, 32, 32, true> {
  static constexpr int32_t ID = 3;
  static constexpr Levels LEVELS = {0, 15};
  static constexpr Nibbles NIBBLES = {WHOLE, 4, 20, false};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    return nibbles(block(chunk, g).q);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int groups, Scales& out) {
    put_halves(out.scale, chunk, BYTES, groups);
    put_halves(out.min, chunk + 2, BYTES, groups);
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : FourBlocks<Avx512, 20, 0, true> {
    template <class Blocks>
    static CONIFER_INLINE W unpack(const Blocks& blocks) {
      const __m512i q = four_lanes(blocks, 4);
      return {low_nibbles(q), high_nibbles(q), blocks.template halves<0>(),
              blocks.template halves<1>()};
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
