// Q5_0: 32 five-bit weights, offset by -16, with one scale. The fifth bits are stored separately.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockQ5_0 {
  uint16_t d;
  uint8_t high[4];
  uint8_t q[16];
};
#pragma pack(pop)

struct Q5_0 : Quantized<BlockQ5_0, 32, 32, false> {
  static constexpr int32_t ID = 6;
  static constexpr Levels LEVELS = {-16, 15};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const BlockQ5_0& b = block(chunk, g);
    return nibbles(b.q) | bits(set_bits32(read_integer<uint32_t>(b.high)), 4, 1, 4);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int groups, Scales& out) {
    put_halves(out.scale, chunk, BYTES, groups);
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : FourBlocks<Avx512, 22, 16> {
    template <class Blocks>
    static CONIFER_INLINE W unpack(const Blocks& blocks) {
      const __m512i q = four_lanes(blocks, 6);
      const __m512 scale = spread_halves(four_words(blocks, 0));
      return {add_fifth(low_nibbles(q), four_words(blocks, 2)),
              add_fifth(high_nibbles(q), four_words(blocks, 4)), scale, times(scale, -16)};
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
