// Q2_0: 64 weights of -1, 0, 1 or 2 in two bits each, with one scale.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockQ2_0 {
  uint16_t d;
  uint8_t q[16];  // four weights each, the first in the low bits
};
#pragma pack(pop)

struct Q2_0 : Quantized<BlockQ2_0, 64, 32, false> {
  static constexpr int32_t ID = 42;
  // The mean weight is half a scale. Rounding the scale to bfloat16 changes all products of a block
  // by the same factor, which is twice the error of activations rounded to 8 bits.
  static constexpr bool TILES = false;

  static void unpack(const uint8_t* data, int index, Unpacked& out) {
    const BlockQ2_0& b = read(data);
    const float d = f16_to_float(b.d);
    for (int i = 0; i < 2; ++i) put_scale(out, 2 * index + i, d);
    int8_t* q = out.q + 64 * index;
    for (int i = 0; i < 64; ++i) q[i] = static_cast<int8_t>((b.q[i / 4] >> 2 * (i % 4) & 3) - 1);
  }
};

}  // namespace
}  // namespace conifer::quant
