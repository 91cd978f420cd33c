// The block types as AVX-512 wants them when few tokens meet each row: weights go from the file to
// registers with as few operations as possible, and the activations are laid out to suit.
//
// Each Format has
//   WEIGHTS, BYTES     of a group: as many blocks as make full vectors
//   struct X           the activations of a group, prepared once per call
//   struct W, unpack   the weights of a group, unpacked once for all tokens; formats with several
//                      blocks in a group also unpack a Part of one, the end of a row
//   dot(W, X, acc)     adds the group's products, spread over the lanes of acc
//
// vpdpbusd multiplies unsigned by signed bytes. Weights are taken as unsigned: the zero point and
// the minimum are one multiply-add with the sums of the activations, for a whole group.
#pragma once

#include "avx512.h"
#include "dot.h"
#include "unpack.h"

namespace conifer {
namespace {

// ---- Four blocks of 32 with 16 bytes of nibbles: a block to each 128-bit lane, its low nibbles
// the first 16 weights and its high nibbles the others, so that two products share one scale.

struct FourBlocksX {
  __m512i low, high;  // values 0..15 and 16..31 of each block
  __m512 scale;       // of each block, in four lanes
  __m512 sum;         // scale * sum of the values, in the first of the four

  void prepare(const TokenView& x, int64_t n) {
    const __m512i a = load512(x.q + n), b = load512(x.q + n + 64);
    low = _mm512_shuffle_i64x2(a, b, 0x88);
    high = _mm512_shuffle_i64x2(a, b, 0xdd);
    scale = spread(_mm512_castps128_ps512(_mm_loadu_ps(x.scale + n / 32)), 0, 1, 2, 3);
    sum = _mm512_maskz_mov_ps(
        0x1111, spread(_mm512_castps128_ps512(_mm_loadu_ps(x.sum + n / 32)), 0, 1, 2, 3));
  }
};

// Where the four blocks of a group are.
template <int BYTES>
struct Whole {
  const uint8_t* data;

  CONIFER_INLINE const uint8_t* block(int i) const { return data + i * BYTES; }

  // The halves at byte 2 W of each block, each in four lanes.
  template <int W>
  CONIFER_INLINE __m512 halves() const {
    return spread_words<W, W + BYTES / 2, W + BYTES, W + BYTES * 3 / 2>(load512(data));
  }
};

// The same of a group that ends with block `last`, which stands in for the others: what meets them
// is zero. Nothing beyond it is read.
template <int BYTES>
struct Part {
  const uint8_t* data;
  int last;

  CONIFER_INLINE const uint8_t* block(int i) const {
    return data + (i < last ? i : last) * BYTES;
  }

  template <int W>
  CONIFER_INLINE __m512 halves() const {
    return spread_halves(four_words(*this, 2 * W));
  }
};

// The words at byte `at` of four blocks.
template <class Blocks>
CONIFER_INLINE uint64_t four_words(const Blocks& blocks, int at) {
  const uint64_t a = read<uint16_t>(blocks.block(0) + at);
  const uint64_t b = read<uint16_t>(blocks.block(1) + at);
  const uint64_t c = read<uint16_t>(blocks.block(2) + at);
  const uint64_t d = read<uint16_t>(blocks.block(3) + at);
  return a | b << 16 | c << 32 | d << 48;
}

// The 16 bytes at byte `at` of four blocks.
template <class Blocks>
CONIFER_INLINE __m512i four_lanes(const Blocks& blocks, int at) {
  const auto lane = [&](int i) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(blocks.block(i) + at));
  };
  __m512i v = _mm512_castsi128_si512(lane(0));
  v = _mm512_inserti32x4(v, lane(1), 1);
  v = _mm512_inserti32x4(v, lane(2), 2);
  return _mm512_inserti32x4(v, lane(3), 3);
}

template <int BLOCK_BYTES>
struct FourBlocks {
  static constexpr int WEIGHTS = 128, BYTES = 4 * BLOCK_BYTES;
  using Whole = conifer::Whole<BLOCK_BYTES>;
  using Part = conifer::Part<BLOCK_BYTES>;
  using X = FourBlocksX;
  struct W {
    __m512i low, high;
    __m512 scale;
    __m512 min;  // lanes other than each fourth are not looked at
  };

  static CONIFER_INLINE __m512 dot(const W& w, const X& x, __m512 acc) {
    const __m512 products = dots(w.low, x.low, w.high, x.high);
    acc = _mm512_fmadd_ps(products, _mm512_mul_ps(w.scale, x.scale), acc);
    return _mm512_fmadd_ps(w.min, x.sum, acc);
  }
};

template <Type type>
struct Gemv;

template <>
struct Gemv<Type::Q4_0> : FourBlocks<18> {
  template <class Blocks>
  static CONIFER_INLINE W unpack(const Blocks& blocks) {
    const __m512i q = four_lanes(blocks, 2);
    const __m512 scale = blocks.template halves<0>();
    return {low_nibbles(q), high_nibbles(q), scale, times(scale, -8)};
  }
};

template <>
struct Gemv<Type::Q4_1> : FourBlocks<20> {
  template <class Blocks>
  static CONIFER_INLINE W unpack(const Blocks& blocks) {
    const __m512i q = four_lanes(blocks, 4);
    return {low_nibbles(q), high_nibbles(q), blocks.template halves<0>(),
            blocks.template halves<1>()};
  }
};

CONIFER_INLINE __m512i add_fifth(__m512i q, __mmask64 bits) {
  return _mm512_mask_add_epi8(q, bits, q, bytes(16));
}

template <>
struct Gemv<Type::Q5_0> : FourBlocks<22> {
  template <class Blocks>
  static CONIFER_INLINE W unpack(const Blocks& blocks) {
    const __m512i q = four_lanes(blocks, 6);
    const __m512 scale = spread_halves(four_words(blocks, 0));
    return {add_fifth(low_nibbles(q), four_words(blocks, 2)),
            add_fifth(high_nibbles(q), four_words(blocks, 4)), scale, times(scale, -16)};
  }
};

template <>
struct Gemv<Type::Q5_1> : FourBlocks<24> {
  template <class Blocks>
  static CONIFER_INLINE W unpack(const Blocks& blocks) {
    const __m512i q = four_lanes(blocks, 8);
    return {add_fifth(low_nibbles(q), four_words(blocks, 4)),
            add_fifth(high_nibbles(q), four_words(blocks, 6)),
            spread_halves(four_words(blocks, 0)), spread_halves(four_words(blocks, 2))};
  }
};

// A codebook, made unsigned by adding `offset`.
CONIFER_INLINE __m512i codebook(const int8_t* values, int offset) {
  const __m512i v = broadcast128(values);
  return _mm512_add_epi8(v, bytes(offset));
}

template <>
struct Gemv<Type::IQ4_NL> : FourBlocks<18> {
  template <class Blocks>
  static CONIFER_INLINE W unpack(const Blocks& blocks) {
    const __m512i q = four_lanes(blocks, 2), codes = codebook(IQ4_VALUES, 128);
    const __m512 scale = blocks.template halves<0>();
    return {_mm512_shuffle_epi8(codes, low_nibbles(q)), _mm512_shuffle_epi8(codes, high_nibbles(q)),
            scale, times(scale, -128)};
  }
};

template <>
struct Gemv<Type::MXFP4> : FourBlocks<17> {
  template <class Blocks>
  static CONIFER_INLINE W unpack(const Blocks& blocks) {
    const __m512i q = four_lanes(blocks, 1), codes = codebook(MXFP4_VALUES, 12);
    const uint32_t e = blocks.block(0)[0] | uint32_t{blocks.block(1)[0]} << 8 |
                       uint32_t{blocks.block(2)[0]} << 16 | uint32_t{blocks.block(3)[0]} << 24;
    // The exponent field of 2^(e - 128) is e - 1. What is less than a normal float counts as zero.
    __m128i exponents = _mm_subs_epu8(_mm_cvtsi32_si128(static_cast<int>(e)), _mm_set1_epi8(1));
    exponents = _mm_slli_epi32(_mm_cvtepu8_epi32(exponents), 23);
    const __m512 scale = spread(_mm512_castps128_ps512(_mm_castsi128_ps(exponents)), 0, 1, 2, 3);
    return {_mm512_shuffle_epi8(codes, low_nibbles(q)), _mm512_shuffle_epi8(codes, high_nibbles(q)),
            scale, times(scale, -12)};
  }
};

template <>
struct Gemv<Type::Q8_0> {
  static constexpr int WEIGHTS = 128, BYTES = 4 * 34;
  using Whole = conifer::Whole<34>;
  using Part = conifer::Part<34>;
  struct X {
    __m512i q[2];
    __m512 scale[2];  // of each block, in eight lanes
    __m512 sum[2];    // -128 * scale * sum of the values, in the first of the eight

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
      const __m512i q = _mm512_inserti64x4(_mm512_castsi256_si512(values(2 * i)),
                                           values(2 * i + 1), 1);
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
};

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
