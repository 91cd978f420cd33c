// Building blocks for the block types' AVX-512 formats. Weights reach registers with as few
// operations as possible, and activations are laid out to match.
//
// Two kernels use a format. For one token (gemm/dot_avx512.cpp) it has
//   WEIGHTS, BYTES     per group: the number of blocks that fill whole vectors
//   struct X, prepare  the activations of a group, prepared once per call
//   struct W, unpack   the weights of a group, unpacked once for all tokens
//   PARTIAL, Part      whether a row may end within a group, and that end
//   dot(W, X, acc)     adds the group's products, spread over the lanes of acc
// and for many tokens (gemm/panel_avx512.h), which are processed in chunks of 256 columns, it has
//   CHUNK_BYTES        per chunk of a row
//   unpack_chunk       writes RowVectors: 4 vectors of 64 weights, one of scales (and of minima)
//   column(v, i)       the first of the 4 columns in dword i of vector v
//   NIBBLES_AT         if there and not 0: where 128 bytes begin, each 32 of which hold 32 weights
//                      in low nibbles and the next 32 in high ones; chunk_scales gives the scales
//   GROUP, scale_lane(g), min_lane(g)   weights per scale; the lanes for group g
//   MINS, SPLIT_MINS   whether there are minima; whether they have a separate vector
//   OFFSET             added to the weights to make them unsigned
//
// vpdpbusd multiplies unsigned by signed bytes, so weights are unsigned here. The zero point and
// the minimum take one multiply-add with the sums of the activations, for a whole group.
#pragma once

#if defined(__AVX512VNNI__)
#define CONIFER_AVX512

#include "isa/avx512.h"

#include <type_traits>

#include "quant/format.h"
#include "quant/token.h"

namespace conifer::quant {
namespace {

using namespace isa;  // the small vector functions

struct RowVectors {
  __m512i q[4];
  __m512 scale, min;
};

// ---- Four blocks of 32 with 16 bytes of nibbles: one block per 128-bit lane. Low nibbles are the
// first 16 weights and high nibbles are the last 16, so that two products share one scale.

struct FourBlocksX {
  __m512i low, high;  // values 0..15 and 16..31 of each block
  __m512 scale;       // for each block, in four lanes
  __m512 sum;         // scale * sum of the values, in the first of the four lanes

  void prepare(const TokenView& x, int64_t n) {
    const __m512i a = load512(x.q + n), b = load512(x.q + n + 64);
    low = _mm512_shuffle_i64x2(a, b, 0x88);
    high = _mm512_shuffle_i64x2(a, b, 0xdd);
    scale = spread(_mm512_castps128_ps512(_mm_loadu_ps(x.scale + n / 32)), 0, 1, 2, 3);
    sum = _mm512_maskz_mov_ps(
        0x1111, spread(_mm512_castps128_ps512(_mm_loadu_ps(x.sum + n / 32)), 0, 1, 2, 3));
  }
};

// Load the words at byte `at` in four blocks.
template <class Blocks>
CONIFER_INLINE uint64_t four_words(const Blocks& blocks, int at) {
  const uint64_t a = read_as<uint16_t>(blocks.block(0) + at);
  const uint64_t b = read_as<uint16_t>(blocks.block(1) + at);
  const uint64_t c = read_as<uint16_t>(blocks.block(2) + at);
  const uint64_t d = read_as<uint16_t>(blocks.block(3) + at);
  return a | b << 16 | c << 32 | d << 48;
}

// Access to a group's four blocks.
template <int BYTES>
struct FourWhole {
  const uint8_t* data;

  CONIFER_INLINE const uint8_t* block(int i) const { return data + i * BYTES; }

  // Load the half at byte 2 W of each block, each repeated in four lanes.
  template <int W>
  CONIFER_INLINE __m512 halves() const {
    return spread_words<W, W + BYTES / 2, W + BYTES, W + BYTES * 3 / 2>(load512(data));
  }
};

// The same for a group that ends after `weights`. The last block replaces missing blocks, whose
// activations are zero, so that nothing past the end is read.
template <int BYTES>
struct FourPart {
  const uint8_t* data;
  int last;

  FourPart(const uint8_t* data, int weights) : data(data), last(weights / 32 - 1) {}

  CONIFER_INLINE const uint8_t* block(int i) const { return data + (i < last ? i : last) * BYTES; }

  template <int W>
  CONIFER_INLINE __m512 halves() const {
    return spread_halves(four_words(*this, 2 * W));
  }
};

// Load the 16 bytes at byte `at` in four blocks.
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

// Format adds unpack(blocks), where blocks is FourWhole or FourPart.
template <class Format, int BLOCK_BYTES, int OFFSET_, bool MINS_ = false>
struct FourBlocks {
  static constexpr int WEIGHTS = 128, BYTES = 4 * BLOCK_BYTES;
  static constexpr bool PARTIAL = true;
  using Whole = FourWhole<BLOCK_BYTES>;
  using Part = FourPart<BLOCK_BYTES>;
  using X = FourBlocksX;
  struct W {
    __m512i low, high;
    __m512 scale;
    __m512 min;  // in every fourth lane; other lanes are ignored
  };

  static CONIFER_INLINE __m512 dot(const W& w, const X& x, __m512 acc) {
    const __m512 products = dots(w.low, x.low, w.high, x.high);
    acc = _mm512_fmadd_ps(products, _mm512_mul_ps(w.scale, x.scale), acc);
    return _mm512_fmadd_ps(w.min, x.sum, acc);
  }

  static constexpr int GROUP = 32, CHUNK_BYTES = 2 * BYTES, OFFSET = OFFSET_;
  static constexpr bool MINS = MINS_, SPLIT_MINS = false;
  static constexpr int column(int v, int i) {
    return 128 * (v / 2) + 32 * (i / 4) + 16 * (v % 2) + 4 * (i % 4);
  }
  static constexpr int scale_lane(int g) { return g; }
  static constexpr int min_lane(int g) { return 8 + g; }

  static CONIFER_INLINE void unpack_chunk(const uint8_t* data, RowVectors& out) {
    const W a = Format::unpack(Whole{data}), b = Format::unpack(Whole{data + BYTES});
    out.q[0] = a.low;
    out.q[1] = a.high;
    out.q[2] = b.low;
    out.q[3] = b.high;
    const __m512i firsts =
        _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    out.scale = _mm512_permutex2var_ps(a.scale, firsts, b.scale);
    if constexpr (MINS)
      out.scale =
          _mm512_mask_blend_ps(0xff00, out.scale, _mm512_permutex2var_ps(a.min, firsts, b.min));
  }
};

CONIFER_INLINE __m512i add_fifth(__m512i q, __mmask64 bits) {
  return _mm512_mask_add_epi8(q, bits, q, bytes(16));
}

// A codebook, with `offset` added to make it unsigned.
CONIFER_INLINE __m512i codebook(const int8_t* values, int offset) {
  const __m512i v = broadcast128(values);
  return _mm512_add_epi8(v, bytes(offset));
}

// ---- Q4_K and Q5_K: blocks of 256 with scales for 32 weights, nibbles in groups of 32 bytes.
// 128-bit lane i is half of group 2i in even vectors, and half of group 2i + 1 in odd vectors.

struct SuperX {
  __m512i even[2], odd[2];
  // scale 0..3 | -sum 0..3 | scale 4..7 | -sum 4..7, matching the unpacked scales and minima
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
  static constexpr bool PARTIAL = false;
  using Whole = const uint8_t*;
  // Q4_K's high nibbles are not shifted, so they are 16 times too large.
  static constexpr float ODD_FACTOR = FIVE ? 1.0f : 0x1p-4f;
  struct X : SuperX {
    void prepare(const TokenView& x, int64_t n) { SuperX::prepare(x, n, ODD_FACTOR); }
  };
  struct W {
    __m512i even[2], odd[2];
    __m512 mixed;
  };

  static CONIFER_INLINE __m512 scales(const uint8_t* data) {
    const uint64_t first = read_as<uint64_t>(data + 4), rest = read_as<uint32_t>(data + 12);
    const uint64_t low = first & 0x3f3f3f3f3f3f3f3f;
    const uint64_t high =
        (first >> 2 & 0x3030303030303030) | ((rest | rest << 28) & 0x0f0f0f0f0f0f0f0f);
    const __m128i packed = _mm_set_epi64x(static_cast<int64_t>(high), static_cast<int64_t>(low));
    const __m256i index = _mm256_setr_epi16(0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1);
    const __m128i d = _mm_cvtsi32_si128(read_as<int>(data));
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
        // Bit j of a byte belongs to block j. Rotate it to bit 4. The mask removes bits from other
        // bytes.
        const __m512i high = broadcast128(data + 16 + 16 * i), mask = bytes(16);
        const __m512i turn = _mm512_setr_epi32(4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0, 30, 30, 30, 30);
        const __m512i odd_turn =
            _mm512_setr_epi32(3, 3, 3, 3, 1, 1, 1, 1, 31, 31, 31, 31, 29, 29, 29, 29);
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

  static constexpr int GROUP = 32, CHUNK_BYTES = BYTES, OFFSET = 0;
  static constexpr bool MINS = true, SPLIT_MINS = false;
  static constexpr int column(int v, int i) {
    return 64 * (i / 4) + 32 * (v / 2) + 16 * (v % 2) + 4 * (i % 4);
  }
  static constexpr int scale_lane(int g) { return g / 4 * 8 + g % 4; }
  static constexpr int min_lane(int g) { return scale_lane(g) + 4; }

  static CONIFER_INLINE void unpack_chunk(const uint8_t* data, RowVectors& out) {
    const W w = unpack(data);
    out.q[0] = w.even[0];
    out.q[1] = w.even[1];
    out.q[2] = w.odd[0];
    out.q[3] = w.odd[1];
    out.scale = chunk_scales(data);
  }

  static constexpr int NIBBLES_AT = FIVE ? 0 : 16;

  static CONIFER_INLINE __m512 chunk_scales(const uint8_t* data) {
    const float odd = ODD_FACTOR;  // and minima are subtracted
    const __m512 factors =
        _mm512_setr_ps(1, odd, 1, odd, -1, -1, -1, -1, 1, odd, 1, odd, -1, -1, -1, -1);
    return _mm512_mul_ps(scales(data), factors);
  }
};

// ---- Chunks of 256 with a scale for 16 weights: one for each 128-bit lane of values, in order.

struct SixteensX {
  __m512i q[4];
  __m512 scale;  // for each 16 values
  __m512 sum;    // scale * sum of the 16 values

  void prepare(const TokenView& x, int64_t n) {
    for (int i = 0; i < 4; ++i) q[i] = load512(x.q + n + 64 * i);
    const __m512 scales = _mm512_maskz_loadu_ps(0xff, x.scale + n / 32);
    scale = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7),
                                  scales);
    sum = _mm512_loadu_ps(x.sum16 + n / 16);
  }
};

// A group of BYTES that ends after `weights`: a copy, in which the missing blocks are zero.
template <int BYTES>
struct PaddedPart {
  alignas(64) uint8_t bytes[BYTES] = {};

  PaddedPart(const uint8_t* data, int weights) {
    std::memcpy(bytes, data, static_cast<size_t>(weights * BYTES / 256));
  }
  operator const uint8_t*() const { return bytes; }
};

// Format adds unpack(whole), and PARTIAL = true if its blocks are smaller than a chunk.
template <class Format, int BYTES_, int OFFSET_, bool MINS_ = false>
struct Sixteens {
  static constexpr int WEIGHTS = 256, BYTES = BYTES_;
  static constexpr bool PARTIAL = false;
  using Whole = const uint8_t*;
  using Part = PaddedPart<BYTES>;
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

  static constexpr int GROUP = 16, CHUNK_BYTES = BYTES, OFFSET = OFFSET_;
  static constexpr bool MINS = MINS_, SPLIT_MINS = MINS;
  static constexpr int column(int v, int i) { return 64 * v + 4 * i; }
  static constexpr int scale_lane(int g) { return g; }
  static constexpr int min_lane(int g) { return g; }

  static CONIFER_INLINE void unpack_chunk(const uint8_t* data, RowVectors& out) {
    const W w = Format::unpack(typename Format::Whole{data});
    for (int i = 0; i < 4; ++i) out.q[i] = w.q[i];
    out.scale = w.scale;
    if constexpr (MINS) out.min = w.min;
  }
};

// The lower and upper 256 bits have separate shift counts.
CONIFER_INLINE __m512i halves(int lower, int upper) {
  return _mm512_inserti64x4(_mm512_set1_epi32(lower), _mm256_set1_epi32(upper), 1);
}

// ---- Any type, using its plain unpack function, which is slower than a dedicated format. Weights
// are signed here, so their signs are applied to the activations.

template <class T>
struct GenericAvx512 {
  static constexpr int WEIGHTS = 256, BYTES = 256 / T::WEIGHTS * T::BYTES;
  static constexpr bool PARTIAL = T::WEIGHTS < 256;
  struct Whole {
    const uint8_t* data;
    int weights = 256;
  };
  using Part = Whole;
  using X = SixteensX;
  struct W {
    __m512i magnitude[4];
    __mmask64 negative[4];
    __m512 scale, min;
  };

  static W unpack(const Whole& group) {
    Unpacked chunk;
    quant::unpack_chunk<T>(group.data, group.weights, chunk);
    W w;
    for (int i = 0; i < 4; ++i) {
      const __m512i q = load512(chunk.q + 64 * i);
      w.magnitude[i] = _mm512_abs_epi8(q);
      w.negative[i] = _mm512_movepi8_mask(q);
    }
    w.scale = _mm512_loadu_ps(chunk.scale);
    if constexpr (T::MINS) w.min = _mm512_loadu_ps(chunk.min);
    return w;
  }

  static CONIFER_INLINE __m512 dot(const W& w, const X& x, __m512 acc) {
    const __m512 scale = _mm512_mul_ps(w.scale, x.scale);
    const auto products = [&](int i) {
      const __m512i q = x.q[i], zero = _mm512_setzero_si512();
      return dots(w.magnitude[i], _mm512_mask_sub_epi8(q, w.negative[i], zero, q));
    };
    if constexpr (T::MINS) acc = _mm512_fmadd_ps(w.min, x.sum, acc);
    acc = _mm512_fmadd_ps(products(0), spread(scale, 0, 1, 2, 3), acc);
    acc = _mm512_fmadd_ps(products(1), spread(scale, 4, 5, 6, 7), acc);
    acc = _mm512_fmadd_ps(products(2), spread(scale, 8, 9, 10, 11), acc);
    return _mm512_fmadd_ps(products(3), spread(scale, 12, 13, 14, 15), acc);
  }

  static constexpr int GROUP = 16, CHUNK_BYTES = BYTES, OFFSET = 128;
  static constexpr bool MINS = T::MINS, SPLIT_MINS = MINS;
  static constexpr int column(int v, int i) { return 64 * v + 4 * i; }
  static constexpr int scale_lane(int g) { return g; }
  static constexpr int min_lane(int g) { return g; }

  static void unpack_chunk(const uint8_t* data, RowVectors& out) {
    Unpacked chunk;
    quant::unpack_chunk<T>(data, 256, chunk);
    for (int i = 0; i < 4; ++i)
      out.q[i] = _mm512_xor_si512(load512(chunk.q + 64 * i), bytes(OFFSET));
    out.scale = _mm512_loadu_ps(chunk.scale);
    if constexpr (MINS) out.min = _mm512_loadu_ps(chunk.min);
  }
};

template <class T, class = void>
struct Avx512Format : std::type_identity<GenericAvx512<T>> {};
#if !defined(CONIFER_GENERIC_AVX512)  // a test defines this to cover the generic format
template <class T>
struct Avx512Format<T, std::void_t<typename T::Avx512>> : std::type_identity<typename T::Avx512> {};
#endif

template <class T>
using Avx512Of = typename Avx512Format<T>::type;

}  // namespace
}  // namespace conifer::quant

#endif
