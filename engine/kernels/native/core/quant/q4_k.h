// Q4_K: 256 four-bit weights, with a six-bit scale and minimum for every 32.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockQ4_K {
  uint16_t d, dmin;
  uint8_t scales[12];  // 8 six-bit scales and 8 six-bit minima
  uint8_t q[128];
};
#pragma pack(pop)

struct Q4_K : Quantized<BlockQ4_K, 256, 32, true> {
  static constexpr int32_t ID = 12;
  static constexpr Levels LEVELS = {0, 15};
  static constexpr Nibbles NIBBLES = {WHOLE, 16, 32, true};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    return bits(load32(block(chunk).q + 32 * (g / 2)), 4 * (g % 2), 4);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int, Scales& out) {
    const BlockQ4_K& b = block(chunk);
    put_k_scales(out, b.scales, f16_to_float(b.d), f16_to_float(b.dmin));
  }

#if defined(CONIFER_AVX512)
  using Avx512 = SuperNibbles<false>;
#endif
};

}  // namespace
}  // namespace conifer::quant
