// TQ1_0: 256 weights of -1, 0 or 1, five to a byte, with one scale.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockTQ1_0 {
  uint8_t q[48];    // five weights each: 32 bytes for 160 weights, then 16 for 80
  uint8_t last[4];  // four weights each
  uint16_t d;
};
#pragma pack(pop)

struct TQ1_0 : Quantized<BlockTQ1_0, 256, 32, false> {
  static constexpr int32_t ID = 34;

  // A byte is the fraction 0.abcde in base 3, times 256. Return the digit after `power` shifts.
  static int8_t digit(uint8_t byte, uint8_t power) {
    const uint8_t shifted = static_cast<uint8_t>(byte * power);
    return static_cast<int8_t>((shifted * 3 >> 8) - 1);
  }

  static void unpack(const uint8_t* data, int, Unpacked& out) {
    constexpr uint8_t POWERS[5] = {1, 3, 9, 27, 81};
    const BlockTQ1_0& b = read(data);
    const float d = f16_to_float(b.d);
    for (int i = 0; i < 8; ++i) put_scale(out, i, d);
    int8_t* q = out.q;
    for (const uint8_t power : POWERS)
      for (int i = 0; i < 32; ++i) *q++ = digit(b.q[i], power);
    for (const uint8_t power : POWERS)
      for (int i = 0; i < 16; ++i) *q++ = digit(b.q[32 + i], power);
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < 4; ++i) *q++ = digit(b.last[i], POWERS[j]);
  }
};

}  // namespace
}  // namespace conifer::quant
