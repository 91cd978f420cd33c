// Q5_K: 256 five-bit weights, with a six-bit scale and minimum for every 32. The fifth bits are
// stored separately.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockQ5_K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t high[32];
  uint8_t q[128];
};
#pragma pack(pop)

struct Q5_K : Quantized<BlockQ5_K, 256, 32, true> {
  static constexpr int32_t ID = 13;
  static constexpr Levels LEVELS = {0, 31};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const BlockQ5_K& b = block(chunk);
    return bits(load32(b.q + 32 * (g / 2)), 4 * (g % 2), 4) | bits(load32(b.high), g, 1, 4);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int, Scales& out) {
    const BlockQ5_K& b = block(chunk);
    put_k_scales(out, b.scales, f16_to_float(b.d), f16_to_float(b.dmin));
  }

#if defined(CONIFER_AVX512)
  using Avx512 = SuperNibbles<true>;
#endif
};

}  // namespace
}  // namespace conifer::quant
