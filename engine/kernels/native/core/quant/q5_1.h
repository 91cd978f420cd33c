// Q5_1: 32 five-bit weights, with one scale and one minimum. The fifth bits are stored separately.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockQ5_1 {
  uint16_t d, m;
  uint8_t high[4];
  uint8_t q[16];
};
#pragma pack(pop)

struct Q5_1 : Quantized<BlockQ5_1, 32, 32, true> {
  static constexpr int32_t ID = 7;
  static constexpr Levels LEVELS = {0, 31};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const BlockQ5_1& b = block(chunk, g);
    return nibbles(b.q) | bits(set_bits32(read_integer<uint32_t>(b.high)), 4, 1, 4);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int groups, Scales& out) {
    put_halves(out.scale, chunk, BYTES, groups);
    put_halves(out.min, chunk + 2, BYTES, groups);
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : FourBlocks<Avx512, 24, 0, true> {
    template <class Blocks>
    static CONIFER_INLINE W unpack(const Blocks& blocks) {
      const __m512i q = four_lanes(blocks, 8);
      return {add_fifth(low_nibbles(q), four_words(blocks, 4)),
              add_fifth(high_nibbles(q), four_words(blocks, 6)),
              spread_halves(four_words(blocks, 0)), spread_halves(four_words(blocks, 2))};
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
