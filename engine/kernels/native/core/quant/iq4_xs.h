// IQ4_XS: 256 weights from IQ4_NL's codebook, with a 6-bit scale, offset by -32, for every 32.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"
#include "quant/iq4_nl.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockIQ4_XS {
  uint16_t d;
  uint16_t scales_high;
  uint8_t scales_low[4];
  uint8_t q[128];
};
#pragma pack(pop)

struct IQ4_XS : Quantized<BlockIQ4_XS, 256, 32, false> {
  static constexpr int32_t ID = 23;
  static constexpr Levels LEVELS = {-127, 113};
  static constexpr Nibbles NIBBLES = {IQ4_VALUES, 8, 16, false};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    return look_up(load(IQ4_VALUES), nibbles(block(chunk).q + 16 * g));
  }

  // 8 six-bit scales as bytes.
  static CONIFER_INLINE uint64_t steps(const uint8_t* chunk) {
    uint64_t high = read_integer<uint16_t>(chunk + 2);
    high = (high | high << 24) & 0x000000ff000000ff;
    high = (high | high << 12) & 0x000f000f000f000f;
    high = (high | high << 6) & 0x0303030303030303;
    return spread_nibbles(read_integer<uint32_t>(chunk + 4)) | high << 4;
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int, Scales& out) {
    put_steps(out.scale, steps(chunk), f16_to_float(block(chunk).d), -32);
  }

#if defined(CONIFER_AVX512)
  struct Avx512 {
    static constexpr int WEIGHTS = 256, BYTES = 136;
    static constexpr bool PARTIAL = false;
    using Whole = const uint8_t*;
    struct X {
      FourBlocksX half[2];
      __m512 scale;  // 8 of them, then zeros
      __m512 sum;    // -128 * scale * sum of the values

      void prepare(const TokenView& x, int64_t n) {
        half[0].prepare(x, n);
        half[1].prepare(x, n + 128);
        scale = _mm512_maskz_loadu_ps(0xff, x.scale + n / 32);
        sum = times(_mm512_maskz_loadu_ps(0xff, x.sum + n / 32), -128);
      }
    };
    struct W {
      __m512i low[2], high[2];
      __m512 scale;
    };

    static CONIFER_INLINE W unpack(const uint8_t* data) {
      const __m512i scale = _mm512_sub_epi32(
          _mm512_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(steps(data)))),
          _mm512_set1_epi32(32));
      W w;
      w.scale = _mm512_mul_ps(_mm512_cvtepi32_ps(scale), half(read_as<uint16_t>(data)));
      const __m512i codes = codebook(IQ4_VALUES, 128);
      for (int i = 0; i < 2; ++i) {
        const __m512i q = load512(data + 8 + 64 * i);
        w.low[i] = _mm512_shuffle_epi8(codes, low_nibbles(q));
        w.high[i] = _mm512_shuffle_epi8(codes, high_nibbles(q));
      }
      return w;
    }

    static CONIFER_INLINE __m512 dot(const W& w, const X& x, __m512 acc) {
      const __m512 scale = _mm512_mul_ps(w.scale, x.scale);
      acc = _mm512_fmadd_ps(w.scale, x.sum, acc);
      acc = _mm512_fmadd_ps(dots(w.low[0], x.half[0].low, w.high[0], x.half[0].high),
                            spread(scale, 0, 1, 2, 3), acc);
      return _mm512_fmadd_ps(dots(w.low[1], x.half[1].low, w.high[1], x.half[1].high),
                             spread(scale, 4, 5, 6, 7), acc);
    }

    static constexpr int GROUP = 32, CHUNK_BYTES = BYTES, OFFSET = 128;
    static constexpr bool MINS = false, SPLIT_MINS = false;
    static constexpr int column(int v, int i) {
      return 128 * (v / 2) + 32 * (i / 4) + 16 * (v % 2) + 4 * (i % 4);
    }
    static constexpr int scale_lane(int g) { return g; }
    static constexpr int min_lane(int g) { return g; }

    static CONIFER_INLINE void unpack_chunk(const uint8_t* data, RowVectors& out) {
      const W w = unpack(data);
      out.q[0] = w.low[0];
      out.q[1] = w.high[0];
      out.q[2] = w.low[1];
      out.q[3] = w.high[1];
      out.scale = w.scale;
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
