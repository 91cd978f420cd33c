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

  static void unpack(const uint8_t* data, int, Unpacked& out) {
    const BlockQ5_K& b = read(data);
    put_k_scales(out, b.scales, f16_to_float(b.d), f16_to_float(b.dmin));
    for (int i = 0; i < 8; ++i)
      for (int j = 0; j < 32; j += 16) {
        const Bytes low = field(load(b.q + 32 * (i / 2) + j), 4 * (i % 2), 4);
        store(out.q + 32 * i + j, low | field(load(b.high + j), i, 1) << fill(4));
      }
  }

#if defined(CONIFER_AVX512)
  using Avx512 = SuperNibbles<true>;
#endif
};

}  // namespace
}  // namespace conifer::quant
