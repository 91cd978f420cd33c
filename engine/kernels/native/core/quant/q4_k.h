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
  static constexpr Nibbles NIBBLES = {WHOLE, 16, 32, true};

  static void unpack(const uint8_t* data, int, Unpacked& out) {
    const BlockQ4_K& b = read(data);
    put_k_scales(out, b.scales, f16_to_float(b.d), f16_to_float(b.dmin));
    for (int i = 0; i < 4; ++i) put_nibbles(out.q + 64 * i, b.q + 32 * i, 32, 0);
  }

#if defined(CONIFER_AVX512)
  using Avx512 = SuperNibbles<false>;
#endif
};

}  // namespace
}  // namespace conifer::quant
