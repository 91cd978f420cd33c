// MXFP4: 32 weights from a 16-entry codebook, with a power-of-two scale.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

// Twice the value of each code, so that all are integers.
constexpr int8_t MXFP4_VALUES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// The shared exponent's value, halved because the codebook is doubled: 2^(e - 128).
inline float mxfp4_scale(uint8_t e) {
  return bits_float(e > 1 ? static_cast<uint32_t>(e - 1) << 23 : 0x00200000u << e);
}

#pragma pack(push, 1)
struct BlockMXFP4 {
  uint8_t e;  // a power of two
  uint8_t q[16];
};
#pragma pack(pop)

struct MXFP4 : Quantized<BlockMXFP4, 32, 32, false> {
  static constexpr int32_t ID = 39;
  static constexpr Levels LEVELS = {-12, 12};
  static constexpr Nibbles NIBBLES = {MXFP4_VALUES, 1, 17, false};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    return look_up(load(MXFP4_VALUES) + fill(12), nibbles(block(chunk, g).q));
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int groups, Scales& out) {
#if defined(__AVX2__)
    if (groups == 8) {
      const auto e = [&](int i) { return int32_t{block(chunk, i).e}; };
      const __m256i eight = _mm256_setr_epi32(e(0), e(1), e(2), e(3), e(4), e(5), e(6), e(7));
      const __m256i one = _mm256_set1_epi32(1);
      const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(eight, one), 23);
      const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), eight);
      const __m256i bits = _mm256_blendv_epi8(subnormal, normal, _mm256_cmpgt_epi32(eight, one));
      return _mm256_store_ps(out.scale, _mm256_castsi256_ps(bits));
    }
#endif
    for (int i = 0; i < groups; ++i) out.scale[i] = mxfp4_scale(block(chunk, i).e);
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : FourBlocks<Avx512, 17, 12> {
    template <class Blocks>
    static CONIFER_INLINE W unpack(const Blocks& blocks) {
      const __m512i q = four_lanes(blocks, 1), codes = codebook(MXFP4_VALUES, 12);
      const uint32_t e = blocks.block(0)[0] | uint32_t{blocks.block(1)[0]} << 8 |
                         uint32_t{blocks.block(2)[0]} << 16 | uint32_t{blocks.block(3)[0]} << 24;
      // The exponent field of 2^(e - 128) is e - 1. Those of e = 0 and 1 are subnormal.
      const __m128i wide = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(static_cast<int>(e)));
      const __m128i normal = _mm_slli_epi32(_mm_sub_epi32(wide, _mm_set1_epi32(1)), 23);
      const __m128i bits = _mm_mask_sllv_epi32(
          normal, _mm_cmple_epu32_mask(wide, _mm_set1_epi32(1)), _mm_set1_epi32(0x00200000), wide);
      const __m512 scale = spread(_mm512_castps128_ps512(_mm_castsi128_ps(bits)), 0, 1, 2, 3);
      return {_mm512_shuffle_epi8(codes, low_nibbles(q)),
              _mm512_shuffle_epi8(codes, high_nibbles(q)), scale, times(scale, -12)};
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
