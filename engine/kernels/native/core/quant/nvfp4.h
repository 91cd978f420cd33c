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
  static constexpr Levels LEVELS = {-12, 12};

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const uint8_t* packed = block(chunk, g / 2).q[g % 2 * 2];
    return look_up(load(MXFP4_VALUES) + fill(12), swap_middle(nibbles(packed)));
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int groups, Scales& out) {
    for (int i = 0; i < 2 * groups; ++i)
      out.scale[i] = nvfp4_scale(block(chunk, i / 4).scales[i % 4]);
  }

#if defined(CONIFER_AVX512)
  struct Avx512 : Sixteens<Avx512, 4 * BYTES, 12> {
    static constexpr bool PARTIAL = true;

    static CONIFER_INLINE W unpack(const uint8_t* data) {
      const __m512i codes = codebook(MXFP4_VALUES, OFFSET);
      const __m512i words = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3);
      const __m512i shifts = _mm512_setr_epi64(0, 4, 0, 4, 0, 4, 0, 4);
      W w;
      for (int i = 0; i < 4; ++i) {
        const __m512i q =
            _mm512_permutexvar_epi64(words, broadcast256(data + NVFP4::BYTES * i + 4));
        w.q[i] = _mm512_shuffle_epi8(codes, low_nibbles(_mm512_srlv_epi64(q, shifts)));
      }
      w.scale = scales(_mm_setr_epi32(read_as<int>(data), read_as<int>(data + NVFP4::BYTES),
                                      read_as<int>(data + 2 * NVFP4::BYTES),
                                      read_as<int>(data + 3 * NVFP4::BYTES)));
      w.min = times(w.scale, -OFFSET);
      return w;
    }

    // nvfp4_scale of 16 bytes. As a half, such a float has an exponent that is 8 too small.
    static CONIFER_INLINE __m512 scales(__m128i e) {
      const __mmask16 numbers = _mm_cmpneq_epu8_mask(e, _mm_set1_epi8(0x7f));
      const __m128i magnitude = _mm_and_si128(e, _mm_set1_epi8(0x7f));
      const __m256i halves =
          _mm256_slli_epi16(_mm256_maskz_mov_epi16(numbers, _mm256_cvtepu8_epi16(magnitude)), 7);
      return times(_mm512_cvtph_ps(halves), 0x1p7f);
    }
  };
#endif
};

}  // namespace
}  // namespace conifer::quant
