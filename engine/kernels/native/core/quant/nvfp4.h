// NVFP4: 64 weights from MXFP4's codebook, with an eight-bit float scale for every 16.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"
#include "quant/mxfp4.h"

namespace conifer::quant {
namespace {

// Four bits of exponent and three of mantissa, halved because the codebook is doubled. The sign bit
// is ignored, and the pattern of NaN counts as 0, as in GGML.
inline float nvfp4_scale(uint8_t e) {
  if (e == 0x7f) return 0;
  const float mantissa = static_cast<float>(e & 7);
  const uint32_t exponent = e >> 3 & 15;
  if (exponent == 0) return mantissa * 0x1p-10f;
  return (mantissa + 8) * bits_float((exponent + 116) << 23);  // 2^(exponent - 11)
}

#pragma pack(push, 1)
struct BlockNVFP4 {
  uint8_t scales[4];
  uint8_t q[4][8];
};
#pragma pack(pop)

struct NVFP4 : Quantized<BlockNVFP4, 64, 16, false> {
  static constexpr int32_t ID = 40;
  static constexpr Levels LEVELS = {-12, 12};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const uint8_t* packed = block(chunk, g / 2).q[g % 2 * 2];
    return look_up(load(MXFP4_VALUES) + fill(12), swap_middle(nibbles(packed)));
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int groups, Scales& out) {
    for (int i = 0; i < 2 * groups; ++i)
      out.scale[i] = nvfp4_scale(block(chunk, i / 4).scales[i % 4]);
  }
};

}  // namespace
}  // namespace conifer::quant
