// The formats of gemv_avx512.h with blocks of 256 weights.
#pragma once

#include "gemm/gemv_avx512.h"

namespace conifer {
namespace {

// ---- Blocks of 256 with scales for 32 weights, nibbles in groups of 32 bytes: 128-bit lane i of
// the even vectors is a half of block 2i, and of the odd ones of block 2i + 1.

struct SuperX {
  __m512i even[2], odd[2];
  // scale 0..3 | -sum 0..3 | scale 4..7 | -sum 4..7: where unpacked scales and minima lie too
  __m512 mixed;

  void prepare(const TokenView& x, int64_t n, float odd_factor) {
    const __m512i a = load512(x.q + n), b = load512(x.q + n + 64);
    const __m512i c = load512(x.q + n + 128), d = load512(x.q + n + 192);
    const __m512i first = _mm512_shuffle_i64x2(a, b, 0x88);
    const __m512i second = _mm512_shuffle_i64x2(c, d, 0x88);
    const __m512i third = _mm512_shuffle_i64x2(a, b, 0xdd);
    const __m512i fourth = _mm512_shuffle_i64x2(c, d, 0xdd);
    even[0] = _mm512_shuffle_i64x2(first, second, 0x88);
    odd[0] = _mm512_shuffle_i64x2(first, second, 0xdd);
    even[1] = _mm512_shuffle_i64x2(third, fourth, 0x88);
    odd[1] = _mm512_shuffle_i64x2(third, fourth, 0xdd);
    const float* scale = x.scale + n / 32;
    const float* sum = x.sum + n / 32;
    alignas(64) float lanes[16];
    for (int i = 0; i < 8; ++i) {
      lanes[i / 4 * 8 + i % 4] = scale[i] * (i % 2 ? odd_factor : 1.0f);
      lanes[i / 4 * 8 + i % 4 + 4] = -sum[i];
    }
    mixed = _mm512_load_ps(lanes);
  }
};

template <bool FIVE>
struct SuperNibbles {
  static constexpr int WEIGHTS = 256, BYTES = FIVE ? 176 : 144;
  using Whole = const uint8_t*;
  struct X : SuperX {
    // Q4_K's high nibbles stay where they are, 16 times too large.
    void prepare(const TokenView& x, int64_t n) { SuperX::prepare(x, n, FIVE ? 1.0f : 0x1p-4f); }
  };
  struct W {
    __m512i even[2], odd[2];
    __m512 mixed;
  };

  static CONIFER_INLINE __m512 scales(const uint8_t* data) {
    const uint64_t first = read<uint64_t>(data + 4), rest = read<uint32_t>(data + 12);
    const uint64_t low = first & 0x3f3f3f3f3f3f3f3f;
    const uint64_t high = (first >> 2 & 0x3030303030303030) |
                          ((rest | rest << 28) & 0x0f0f0f0f0f0f0f0f);
    const __m128i packed =
        _mm_set_epi64x(static_cast<int64_t>(high), static_cast<int64_t>(low));
    const __m256i index = _mm256_setr_epi16(0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1);
    const __m128i d = _mm_cvtsi32_si128(read<int>(data));
    const __m512 factors =
        _mm512_cvtph_ps(_mm256_permutexvar_epi16(index, _mm256_castsi128_si256(d)));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(packed)), factors);
  }

  static CONIFER_INLINE W unpack(const uint8_t* data) {
    const uint8_t* q = data + (FIVE ? 48 : 16);
    const __m512i a = load512(q), b = load512(q + 64);
    W w;
    w.mixed = scales(data);
    for (int i = 0; i < 2; ++i) {
      const __m512i both =
          i == 0 ? _mm512_shuffle_i64x2(a, b, 0x88) : _mm512_shuffle_i64x2(a, b, 0xdd);
      w.even[i] = low_nibbles(both);
      if constexpr (!FIVE) {
        w.odd[i] = _mm512_and_si512(both, bytes(0xf0));
      } else {
        // Bit j of a byte belongs to block j: turn it to bit 4. Bits from other bytes fall outside
        // the mask.
        const __m512i high = broadcast128(data + 16 + 16 * i), mask = bytes(16);
        const __m512i turn =
            _mm512_setr_epi32(4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0, 30, 30, 30, 30);
        const __m512i odd_turn = _mm512_setr_epi32(3, 3, 3, 3, 1, 1, 1, 1, 31, 31, 31, 31, 29, 29,
                                                   29, 29);
        w.even[i] = merge_bits(w.even[i], _mm512_rolv_epi32(high, turn), mask);
        w.odd[i] = merge_bits(high_nibbles(both), _mm512_rolv_epi32(high, odd_turn), mask);
      }
    }
    return w;
  }

  static CONIFER_INLINE __m512 dot(const W& w, const X& x, __m512 acc) {
    const __m512 mixed = _mm512_mul_ps(w.mixed, x.mixed);
    const __m512 even = dots(w.even[0], x.even[0], w.even[1], x.even[1]);
    const __m512 odd = dots(w.odd[0], x.odd[0], w.odd[1], x.odd[1]);
    acc = _mm512_mask_add_ps(acc, 0xf0f0, acc, mixed);
    acc = _mm512_fmadd_ps(even, spread(mixed, 0, 2, 8, 10), acc);
    return _mm512_fmadd_ps(odd, spread(mixed, 1, 3, 9, 11), acc);
  }
};

template <>
struct Gemv<Type::Q4_K> : SuperNibbles<false> {};
template <>
struct Gemv<Type::Q5_K> : SuperNibbles<true> {};

template <>
struct Gemv<Type::IQ4_XS> {
  static constexpr int WEIGHTS = 256, BYTES = 136;
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
    uint64_t packed = read<uint32_t>(data + 4), high = read<uint16_t>(data + 2);
    packed = (packed | packed << 16) & 0x0000ffff0000ffff;  // fields of 4 and of 2 bits to bytes
    packed = (packed | packed << 8) & 0x00ff00ff00ff00ff;
    packed = (packed | packed << 4) & 0x0f0f0f0f0f0f0f0f;
    high = (high | high << 24) & 0x000000ff000000ff;
    high = (high | high << 12) & 0x000f000f000f000f;
    high = (high | high << 6) & 0x0303030303030303;
    packed |= high << 4;
    const __m512i scale = _mm512_sub_epi32(
        _mm512_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(packed))),
        _mm512_set1_epi32(32));
    W w;
    w.scale = _mm512_mul_ps(_mm512_cvtepi32_ps(scale), half(read<uint16_t>(data)));
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
};

// ---- Blocks of 256 with a scale for 16 weights: a 128-bit lane of values in order has one.

struct SixteensX {
  __m512i q[4];
  __m512 scale;  // for each 16 values
  __m512 sum;    // scale * sum of the 16 values

  void prepare(const TokenView& x, int64_t n) {
    for (int i = 0; i < 4; ++i) q[i] = load512(x.q + n + 64 * i);
    const __m512 scales = _mm512_maskz_loadu_ps(0xff, x.scale + n / 32);
    scale = _mm512_permutexvar_ps(
        _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7), scales);
    sum = _mm512_loadu_ps(x.sum16 + n / 16);
  }
};

template <int BYTES_>
struct Sixteens {
  static constexpr int WEIGHTS = 256, BYTES = BYTES_;
  using Whole = const uint8_t*;
  using X = SixteensX;
  struct W {
    __m512i q[4];
    __m512 scale, min;
  };

  static CONIFER_INLINE __m512 dot(const W& w, const X& x, __m512 acc) {
    const __m512 scale = _mm512_mul_ps(w.scale, x.scale);
    acc = _mm512_fmadd_ps(w.min, x.sum, acc);
    acc = _mm512_fmadd_ps(dots(w.q[0], x.q[0]), spread(scale, 0, 1, 2, 3), acc);
    acc = _mm512_fmadd_ps(dots(w.q[1], x.q[1]), spread(scale, 4, 5, 6, 7), acc);
    acc = _mm512_fmadd_ps(dots(w.q[2], x.q[2]), spread(scale, 8, 9, 10, 11), acc);
    return _mm512_fmadd_ps(dots(w.q[3], x.q[3]), spread(scale, 12, 13, 14, 15), acc);
  }
};

// Lower and upper 256 bits get shift counts of their own.
CONIFER_INLINE __m512i halves(int lower, int upper) {
  return _mm512_inserti64x4(_mm512_set1_epi32(lower), _mm256_set1_epi32(upper), 1);
}

template <>
struct Gemv<Type::Q6_K> : Sixteens<210> {
  static CONIFER_INLINE W unpack(const uint8_t* data) {
    const __m512 scales = _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data + 192))));
    W w;
    w.scale = _mm512_mul_ps(scales, half(read<uint16_t>(data + 208)));
    w.min = times(w.scale, -32);
    for (int i = 0; i < 2; ++i) {
      const __m512i q = load512(data + 64 * i), high = broadcast256(data + 128 + 32 * i);
      const __m512i mask = bytes(0x30);
      w.q[2 * i] = merge_bits(low_nibbles(q), _mm512_rolv_epi32(high, halves(4, 2)), mask);
      w.q[2 * i + 1] = merge_bits(high_nibbles(q), _mm512_rolv_epi32(high, halves(0, 30)), mask);
    }
    return w;
  }
};

template <>
struct Gemv<Type::Q2_K> : Sixteens<84> {
  static CONIFER_INLINE W unpack(const uint8_t* data) {
    const __m512i packed =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data)));
    W w;
    w.scale = _mm512_mul_ps(
        _mm512_cvtepi32_ps(_mm512_and_si512(packed, _mm512_set1_epi32(15))),
        half(read<uint16_t>(data + 80)));
    w.min = times(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(packed, 4)),
                                half(read<uint16_t>(data + 82))),
                  -1);
    for (int i = 0; i < 4; ++i) {
      const __m512i q = broadcast256(data + 16 + 32 * (i / 2));
      w.q[i] = _mm512_and_si512(_mm512_srlv_epi32(q, i % 2 ? halves(4, 6) : halves(0, 2)),
                                bytes(3));
    }
    return w;
  }
};

template <>
struct Gemv<Type::Q3_K> : Sixteens<110> {
  static CONIFER_INLINE W unpack(const uint8_t* data) {
    const uint64_t low = read<uint64_t>(data + 96);
    const uint64_t first = (low & 0x0f0f0f0f0f0f0f0f), second = (low >> 4 & 0x0f0f0f0f0f0f0f0f);
    const uint64_t rest = read<uint32_t>(data + 104), twice = rest | rest << 30;
    // Two bits of each byte of `rest`, by turns: 0..3, 4..7, then 8..11, 12..15.
    const uint64_t first_high = twice << 4 & 0x3030303030303030;
    const uint64_t second_high = twice & 0x3030303030303030;
    const __m128i packed = _mm_set_epi64x(static_cast<int64_t>(second | second_high),
                                          static_cast<int64_t>(first | first_high));
    const __m512i scale = _mm512_sub_epi32(_mm512_cvtepu8_epi32(packed), _mm512_set1_epi32(32));
    W w;
    w.scale = _mm512_mul_ps(_mm512_cvtepi32_ps(scale), half(read<uint16_t>(data + 108)));
    w.min = times(w.scale, -4);
    const __m512i high = broadcast256(data);
    for (int i = 0; i < 4; ++i) {
      const __m512i q = broadcast256(data + 32 + 32 * (i / 2));
      const __m512i two = _mm512_and_si512(
          _mm512_srlv_epi32(q, i % 2 ? halves(4, 6) : halves(0, 2)), bytes(3));
      const __m512i turn = halves((34 - 2 * i) % 32, (33 - 2 * i) % 32);
      w.q[i] = merge_bits(two, _mm512_rolv_epi32(high, turn), bytes(4));
    }
    return w;
  }
};

}  // namespace
}  // namespace conifer
