// Q1_0: 128 weights of -1 or 1 in one bit each, with one scale.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockQ1_0 {
  uint16_t d;
  uint8_t bits[16];
};
#pragma pack(pop)

struct Q1_0 : Quantized<BlockQ1_0, 128, 32, false> {
  static constexpr int32_t ID = 41;
  static constexpr Levels LEVELS = {-1, 1};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const uint8_t* four = block(chunk, g / 4).bits + g % 4 * 4;
    return bits(set_bits32(read_integer<uint32_t>(four)), 1, 1, 1);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int groups, Scales& out) {
    for (int i = 0; i < groups; i += 4)
      put_all(out.scale + i, 4, f16_to_float(block(chunk, i / 4).d));
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : Sixteens<Avx512, 2 * BYTES, 1> {
    static constexpr bool PARTIAL = true;

    static CONIFER_INLINE W unpack(const uint8_t* data) {
      W w;
      for (int i = 0; i < 4; ++i)
        w.q[i] = _mm512_maskz_mov_epi8(
            read_as<uint64_t>(data + Q1_0::BYTES * (i / 2) + 2 + 8 * (i % 2)), bytes(2));
      const uint64_t d[2] = {read_as<uint16_t>(data), read_as<uint16_t>(data + Q1_0::BYTES)};
      w.scale = spread_halves((d[0] | d[1] << 32) * 0x10001);
      w.min = times(w.scale, -OFFSET);
      return w;
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
