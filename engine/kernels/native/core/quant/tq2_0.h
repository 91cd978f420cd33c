// TQ2_0: 256 weights of -1, 0 or 1 in two bits each, with one scale.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockTQ2_0 {
  uint8_t q[64];
  uint16_t d;
};
#pragma pack(pop)

struct TQ2_0 : Quantized<BlockTQ2_0, 256, 32, false> {
  static constexpr int32_t ID = 35;
  static constexpr Levels LEVELS = {-1, 2};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    return bits(load32(block(chunk).q + 32 * (g / 4)), 2 * (g % 4), 2);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int, Scales& out) {
    put_all(out.scale, 8, f16_to_float(block(chunk).d));
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : Sixteens<Avx512, 66, 1> {
    static CONIFER_INLINE W unpack(const uint8_t* data) {
      W w;
      w.scale = half(read_as<uint16_t>(data + 64));
      w.min = times(w.scale, -OFFSET);
      for (int i = 0; i < 4; ++i) {
        const __m512i q = broadcast256(data + 32 * (i / 2));
        w.q[i] =
            _mm512_and_si512(_mm512_srlv_epi32(q, i % 2 ? halves(4, 6) : halves(0, 2)), bytes(3));
      }
      return w;
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
