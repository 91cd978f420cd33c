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

  static void unpack(const uint8_t* data, int index, Unpacked& out) {
    const BlockQ1_0& b = read(data);
    const float d = f16_to_float(b.d);
    for (int i = 0; i < 4; ++i) put_scale(out, 4 * index + i, d);
    for (int i = 0; i < 8; ++i)
      store(out.q + 128 * index + 16 * i, (set_bits(b.bits + 2 * i) & fill(2)) - fill(1));
  }
};

}  // namespace
}  // namespace conifer::quant
