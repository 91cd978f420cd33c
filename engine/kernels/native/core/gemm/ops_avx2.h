// Vector arithmetic for AVX2 with FMA and F16C, and for the same with AVX-VNNI.
//
// vpmaddubsw (and vpdpbusd, with VNNI) multiply unsigned by signed bytes. Weights are unsigned
// here, except for types with more than 128 levels: without VNNI their signs are applied to the
// values, because pairs of products would saturate; with VNNI they are moved up by 128.
#pragma once

#include <immintrin.h>

#include "gemm/panels.h"

namespace conifer::gemm {
namespace {

using quant::Bytes32;

struct Avx2 {
#if defined(__AVXVNNI__)
  static constexpr bool VNNI = true;
#else
  static constexpr bool VNNI = false;
#endif
  static constexpr int LANES = 8;
  static constexpr int ROWS = 2;  // four need more than the 16 registers
  // vpdpbusd takes 4 cycles or more, and two begin in each, so that eight sums would wait for one
  // another. Without it, sums of 16 bits need registers of their own.
  static constexpr int TILE = VNNI ? 6 : 4;
  using Acc = __m256;

  static Acc zero() { return _mm256_setzero_ps(); }

  static float total(Acc acc) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(acc), _mm256_extractf128_ps(acc, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }

  static Acc load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Acc v) { _mm256_storeu_ps(p, v); }

  // ---- Weights times int8 values. See gemm/decode.h.

  using Ints = __m256i;

  template <class T>
  static constexpr int OFFSET = VNNI && T::LEVELS.is_signed() ? 128 : T::LEVELS.offset();

  template <class T>
  static CONIFER_INLINE Bytes32 encode(Bytes32 w) {
    return VNNI && T::LEVELS.is_signed() ? w ^ quant::fill32(128) : w;
  }

  template <class T>
  static CONIFER_INLINE __m256 minima(const Scales& s, int at) {
    if constexpr (T::MINS) return _mm256_load_ps(s.min + at);
    return _mm256_mul_ps(_mm256_set1_ps(-OFFSET<T>), _mm256_load_ps(s.scale + at));
  }

  template <class T>
  static CONIFER_INLINE Acc weigh(Scales& s, const TokenView& x, int64_t n, Acc acc) {
    constexpr bool WITH_MINIMA = T::MINS || OFFSET<T> != 0;
    const __m256 given = _mm256_loadu_ps(x.scale + n / 32);
    if constexpr (T::GROUP == 32) {
      if constexpr (WITH_MINIMA) acc = _mm256_fmadd_ps(minima<T>(s, 0), load(x.sum + n / 32), acc);
      _mm256_store_ps(s.scale, _mm256_mul_ps(_mm256_load_ps(s.scale), given));
    } else {
      for (int i = 0; i < 2; ++i) {
        if constexpr (WITH_MINIMA)
          acc = _mm256_fmadd_ps(minima<T>(s, 8 * i), load(x.sum16 + n / 16 + 8 * i), acc);
        const __m256i twice =
            _mm256_add_epi32(_mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3), _mm256_set1_epi32(4 * i));
        const __m256 scale = _mm256_permutevar8x32_ps(given, twice);
        _mm256_store_ps(s.scale + 8 * i, _mm256_mul_ps(_mm256_load_ps(s.scale + 8 * i), scale));
      }
    }
    return acc;
  }

  static CONIFER_INLINE __m256i load_values(const int8_t* q) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q));
  }

  // Pairs of products in 16 bits. Unsigned weights are below 128, and the magnitude of signed ones
  // is at most 128, so a pair is at most 2 * 128 * 127 = 32512 and vpmaddubsw does not saturate.
  template <class T>
  static CONIFER_INLINE __m256i pairs(__m256i w, __m256i x) {
    if constexpr (T::LEVELS.is_signed())
      return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_maddubs_epi16(w, x);
  }

  static CONIFER_INLINE __m256i widen(__m256i pairs) {
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }

  template <class T>
  static CONIFER_INLINE Acc dot(Acc acc, Bytes32 bytes, __m256i x, const float* scales) {
    const __m256i w = (__m256i)bytes;
    __m256i sums;
#if defined(__AVXVNNI__)
    sums = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), w, x);
#else
    sums = widen(pairs<T>(w, x));
#endif
    __m256 scale;
    if constexpr (T::GROUP == 32) {
      scale = _mm256_broadcast_ss(scales);
    } else {
      const __m256d both = _mm256_broadcast_sd(reinterpret_cast<const double*>(scales));
      scale =
          _mm256_permutevar_ps(_mm256_castpd_ps(both), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
    }
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), scale, acc);
  }

  // ---- Panels. See gemm/panels.h.

  template <class Row>
  static CONIFER_INLINE void put_columns(const Row* const (&rows)[8], void* out, size_t stride) {
    __m256 v[8], u[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) v[i] = _mm256_loadu_ps(reinterpret_cast<const float*>(rows[i]));
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      u[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
      u[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {  // v[i + j]: columns j and 4 + j of rows i .. i + 3
      v[i] = _mm256_shuffle_ps(u[i], u[i + 2], 0x44);
      v[i + 1] = _mm256_shuffle_ps(u[i], u[i + 2], 0xee);
      v[i + 2] = _mm256_shuffle_ps(u[i + 1], u[i + 3], 0x44);
      v[i + 3] = _mm256_shuffle_ps(u[i + 1], u[i + 3], 0xee);
    }
    uint8_t* to = static_cast<uint8_t*>(out);
    const auto put = [&](int column, __m256 eight) {
      store(reinterpret_cast<float*>(to + static_cast<size_t>(column) * stride), eight);
    };
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      put(i, _mm256_permute2f128_ps(v[i], v[i + 4], 0x20));
      put(i + 4, _mm256_permute2f128_ps(v[i], v[i + 4], 0x31));
    }
  }

  // Compute v here. GCC would delay the additions until their terms no longer fit the registers.
  static CONIFER_INLINE void settle(__m256i& v) { asm("" : "+x"(v)); }

  // How many pairs of products add up in 16 bits: a power of two.
  static constexpr int room(int largest, int steps) {
    while (steps > 1 && steps * 2 * 127 * largest > 32767) steps /= 2;
    return steps;
  }

  template <class T, int TOKENS>
  static CONIFER_INLINE void dots(const uint8_t* panel, const int8_t* const (&q)[TOKENS], int at,
                                  const int32_t (&first)[TOKENS], Ints (&out)[TOKENS][2]) {
    constexpr int STEPS = T::GROUP / 4, ROOM = VNNI ? 1 : room(T::LEVELS.largest(), STEPS);
    constexpr int STRIDE = 128;  // bytes of four columns
#pragma GCC unroll 8
    for (int step = 0; step < STEPS; step += ROOM) {
      __m256i sums[TOKENS][2];
#pragma GCC unroll 8
      for (int k = step; k < step + ROOM; ++k) {
        const __m256i w0 = load_values(reinterpret_cast<const int8_t*>(panel + k * STRIDE));
        const __m256i w1 = load_values(reinterpret_cast<const int8_t*>(panel + k * STRIDE + 32));
#pragma GCC unroll 6
        for (int t = 0; t < TOKENS; ++t) {
          const __m256i x = _mm256_set1_epi32(quant::read_integer<int32_t>(q[t] + at + 4 * k));
#if defined(__AVXVNNI__)
          const __m256i start = _mm256_set1_epi32(first[t]);
          out[t][0] = _mm256_dpbusd_avx_epi32(k ? out[t][0] : start, w0, x);
          out[t][1] = _mm256_dpbusd_avx_epi32(k ? out[t][1] : start, w1, x);
          (void)sums;
#else
          const __m256i p0 = pairs<T>(w0, x), p1 = pairs<T>(w1, x);
          sums[t][0] = k == step ? p0 : _mm256_add_epi16(sums[t][0], p0);
          sums[t][1] = k == step ? p1 : _mm256_add_epi16(sums[t][1], p1);
          if constexpr (ROOM > 1) settle(sums[t][0]);
          if constexpr (ROOM > 1) settle(sums[t][1]);
#endif
        }
      }
#if !defined(__AVXVNNI__)
#pragma GCC unroll 4
      for (int t = 0; t < TOKENS; ++t)
        for (int v = 0; v < 2; ++v) {
          const __m256i wide = widen(sums[t][v]);
          out[t][v] = _mm256_add_epi32(step ? out[t][v] : _mm256_set1_epi32(first[t]), wide);
        }
#endif
    }
  }

  static CONIFER_INLINE Acc add_scaled(Acc acc, Ints dot, const float* scales, float scale) {
    const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), _mm256_load_ps(scales));
    return _mm256_fmadd_ps(scaled, _mm256_set1_ps(scale), acc);
  }

  static CONIFER_INLINE Acc add_product(Acc acc, const float* w, float x) {
    return _mm256_fmadd_ps(_mm256_load_ps(w), _mm256_set1_ps(x), acc);
  }

  // ---- Floats, and the quantiser. See gemm/rowwise.h.

  static Acc fma(Acc acc, __m256 w, const float* x) {
    return _mm256_fmadd_ps(w, _mm256_loadu_ps(x), acc);
  }
  static __m256 load_f32(const uint8_t* w) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(w));
  }
  static __m128i load_halves(const uint8_t* w) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(w));
  }
  static __m256 load_f16(const uint8_t* w) { return _mm256_cvtph_ps(load_halves(w)); }
  static __m256 load_bf16(const uint8_t* w) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_halves(w)), 16));
  }

  static int32_t sum16(const int8_t* q) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
    const __m128i moved = _mm_xor_si128(bytes, _mm_set1_epi8(-128));  // up by 128
    const __m128i eights = _mm_sad_epu8(moved, _mm_setzero_si128());
    return _mm_cvtsi128_si32(eights) + _mm_extract_epi16(eights, 4) - 16 * 128;
  }

  static float quantize(const float* x, int8_t* q) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 v[4], top = zero();
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_loadu_ps(x + 8 * i);
      top = _mm256_max_ps(top, _mm256_and_ps(v[i], magnitude));
    }
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    float largest = _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
    const __m256 unordered = _mm256_or_ps(_mm256_cmp_ps(v[0], v[1], _CMP_UNORD_Q),
                                          _mm256_cmp_ps(v[2], v[3], _CMP_UNORD_Q));
    if (_mm256_movemask_ps(unordered)) largest = NAN;  // a maximum may ignore NaN
    const __m256 inverse = _mm256_set1_ps(counts(largest) ? 127.0f / largest : 0.0f);
    const __m256i used = _mm256_set1_epi32(counts(largest) ? -1 : 0);
    __m256i rounded[4];
    for (int i = 0; i < 4; ++i)
      rounded[i] = _mm256_and_si256(_mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse)), used);
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(rounded[0], rounded[1]),
                                              _mm256_packs_epi32(rounded[2], rounded[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing works per lane
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm256_permutevar8x32_epi32(packed, order));
    return largest / 127.0f;
  }
};

}  // namespace
}  // namespace conifer::gemm
