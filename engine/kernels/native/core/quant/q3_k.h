// Q3_K: 256 three-bit weights, offset by -4, with a six-bit scale for every 16. The third bits are
// stored separately.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockQ3_K {
  uint8_t high[32];
  uint8_t q[64];
  uint8_t scales[12];  // 16 six-bit scales, offset by -32
  uint16_t d;
};
#pragma pack(pop)

struct Q3_K : Quantized<BlockQ3_K, 256, 16, false> {
  static constexpr int32_t ID = 11;

  static void unpack(const uint8_t* data, int, Unpacked& out) {
    const BlockQ3_K& b = read(data);
    const float d = f16_to_float(b.d);
    for (int i = 0; i < 16; ++i) {
      const int low = b.scales[i % 8] >> 4 * (i / 8) & 15;
      const int high = b.scales[8 + i % 4] >> 2 * (i / 4) & 3;
      out.scale[i] = d * static_cast<float>((low | high << 4) - 32);
      out.min[i] = 0;
    }
    for (int i = 0; i < 8; ++i)
      for (int j = 0; j < 32; j += 16) {
        const Bytes low = field(load(b.q + 32 * (i / 4) + j), 2 * (i % 4), 2);
        store(out.q + 32 * i + j, (low | field(load(b.high + j), i, 1) << fill(2)) - fill(4));
      }
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : Sixteens<Avx512, 110, 4> {
    static CONIFER_INLINE W unpack(const uint8_t* data) {
      const uint64_t low = read_as<uint64_t>(data + 96);
      const uint64_t first = (low & 0x0f0f0f0f0f0f0f0f), second = (low >> 4 & 0x0f0f0f0f0f0f0f0f);
      const uint64_t rest = read_as<uint32_t>(data + 104), twice = rest | rest << 30;
      // Two bits from each byte of `rest` in turn: 0..3, 4..7, 8..11, then 12..15.
      const uint64_t first_high = twice << 4 & 0x3030303030303030;
      const uint64_t second_high = twice & 0x3030303030303030;
      const __m128i packed = _mm_set_epi64x(static_cast<int64_t>(second | second_high),
                                            static_cast<int64_t>(first | first_high));
      const __m512i scale = _mm512_sub_epi32(_mm512_cvtepu8_epi32(packed), _mm512_set1_epi32(32));
      W w;
      w.scale = _mm512_mul_ps(_mm512_cvtepi32_ps(scale), half(read_as<uint16_t>(data + 108)));
      w.min = times(w.scale, -4);
      const __m512i high = broadcast256(data);
      for (int i = 0; i < 4; ++i) {
        const __m512i q = broadcast256(data + 32 + 32 * (i / 2));
        const __m512i two =
            _mm512_and_si512(_mm512_srlv_epi32(q, i % 2 ? halves(4, 6) : halves(0, 2)), bytes(3));
        const __m512i turn = halves((34 - 2 * i) % 32, (33 - 2 * i) % 32);
        w.q[i] = merge_bits(two, _mm512_rolv_epi32(high, turn), bytes(4));
      }
      return w;
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
