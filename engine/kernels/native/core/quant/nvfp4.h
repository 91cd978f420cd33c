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

  static void unpack(const uint8_t* data, int index, Unpacked& out) {
    const BlockNVFP4& b = read(data);
    const Bytes codes = load(MXFP4_VALUES);
    for (int i = 0; i < 4; ++i) {
      out.scale[4 * index + i] = nvfp4_scale(b.scales[i]);
      out.min[4 * index + i] = 0;
      Bytes packed{};
      std::memcpy(&packed, b.q[i], 8);
      typedef uint64_t Words __attribute__((vector_size(16)));
      const Words low = (Words)field(packed, 0, 4), high = (Words)field(packed, 4, 4);
      store(out.q + 64 * index + 16 * i, look_up(codes, (Bytes)Words{low[0], high[0]}));
    }
  }
};

}  // namespace
}  // namespace conifer::quant
