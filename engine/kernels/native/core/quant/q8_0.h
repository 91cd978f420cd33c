// Q8_0: 32 eight-bit weights, with one scale.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockQ8_0 {
  uint16_t d;
  int8_t q[32];
};
#pragma pack(pop)

struct Q8_0 : Quantized<BlockQ8_0, 32, 32, false> {
  static constexpr int32_t ID = 8;
  static constexpr Levels LEVELS = {-128, 127};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    return load32(block(chunk, g).q);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int groups, Scales& out) {
    put_halves(out.scale, chunk, BYTES, groups);
  }

#if defined(CONIFER_AVX512)
  struct Avx512 {
    static constexpr int WEIGHTS = 128, BYTES = 4 * 34;
    static constexpr bool PARTIAL = true;
    using Whole = FourWhole<34>;
    using Part = FourPart<34>;
    struct X {
      __m512i q[2];
      __m512 scale[2];  // for each block, in eight lanes
      __m512 sum[2];    // -128 * scale * sum of the values, in the first of eight lanes

      void prepare(const TokenView& x, int64_t n) {
        const __m512 scales = _mm512_castps128_ps512(_mm_loadu_ps(x.scale + n / 32));
        const __m512 sums = _mm512_castps128_ps512(_mm_loadu_ps(x.sum + n / 32));
        for (int i = 0; i < 2; ++i) {
          q[i] = load512(x.q + n + 64 * i);
          scale[i] = spread(scales, 2 * i, 2 * i, 2 * i + 1, 2 * i + 1);
          sum[i] = times(
              _mm512_maskz_mov_ps(0x0101, spread(sums, 2 * i, 2 * i, 2 * i + 1, 2 * i + 1)), -128);
        }
      }
    };
    struct W {
      __m512i q[2];
      __m512 scale[2];
    };

    template <class Blocks>
    static CONIFER_INLINE W unpack(const Blocks& blocks) {
      const auto values = [&](int i) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(blocks.block(i) + 2));
      };
      W w;
      for (int i = 0; i < 2; ++i) {
        const __m512i q =
            _mm512_inserti64x4(_mm512_castsi256_si512(values(2 * i)), values(2 * i + 1), 1);
        w.q[i] = _mm512_xor_si512(q, bytes(128));
      }
      const __m512 scales = _mm512_castps128_ps512(
          _mm_cvtph_ps(_mm_cvtsi64_si128(static_cast<int64_t>(four_words(blocks, 0)))));
      w.scale[0] = spread(scales, 0, 0, 1, 1);
      w.scale[1] = spread(scales, 2, 2, 3, 3);
      return w;
    }

    static CONIFER_INLINE __m512 dot(const W& w, const X& x, __m512 acc) {
      for (int i = 0; i < 2; ++i) {
        const __m512 products = dots(w.q[i], x.q[i]);
        acc = _mm512_fmadd_ps(products, _mm512_mul_ps(w.scale[i], x.scale[i]), acc);
        acc = _mm512_fmadd_ps(w.scale[i], x.sum[i], acc);
      }
      return acc;
    }

    static constexpr int GROUP = 32, CHUNK_BYTES = 2 * BYTES, OFFSET = 128;
    static constexpr bool MINS = false, SPLIT_MINS = false;
    static constexpr int column(int v, int i) { return 64 * v + 4 * i; }
    static constexpr int scale_lane(int g) { return g; }
    static constexpr int min_lane(int g) { return g; }

    static CONIFER_INLINE void unpack_chunk(const uint8_t* data, RowVectors& out) {
      const W a = unpack(Whole{data}), b = unpack(Whole{data + BYTES});
      out.q[0] = a.q[0];
      out.q[1] = a.q[1];
      out.q[2] = b.q[0];
      out.q[3] = b.q[1];
      const __m512i firsts =
          _mm512_setr_epi32(0, 8, 16, 24, 0, 8, 16, 24, 0, 8, 16, 24, 0, 8, 16, 24);
      const __m512 first = _mm512_permutex2var_ps(a.scale[0], firsts, a.scale[1]);
      const __m512 second = _mm512_permutex2var_ps(b.scale[0], firsts, b.scale[1]);
      out.scale = _mm512_mask_blend_ps(0xf0, first, second);
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
