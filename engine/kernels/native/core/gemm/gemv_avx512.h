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

#include "isa/avx512.h"
#include "isa/kernels.h"
#include "quant/unpack.h"

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

}  // namespace
}  // namespace conifer
