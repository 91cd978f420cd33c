// Panels of weights for many tokens: 32 rows by 256 columns, unpacked to unsigned bytes that lie as
// the multiplication takes them. A vector holds 4 consecutive columns of 16 rows.
#pragma once

#include <algorithm>

#include "gemm/gemv_avx512_super.h"

namespace conifer {
namespace {

constexpr int ROWS = 32;
constexpr int COLS = 256;

struct alignas(64) Panel {
  uint8_t q[COLS / 4][2][64];
  float scale[16][ROWS];  // by group of columns
  float min[16][ROWS];
};

// ---- From a row's vectors, as few tokens would use them, to the panel. A Layout has VECTORS of 64
// weights; unpack, which writes those and a vector of scales (and of minima); column(v, i), where
// the 4 weights of dword i in vector v belong; and the lanes where the scale of group g is, and its
// minimum. OFFSET is what was added to the weights to make them unsigned.

struct RowVectors {
  __m512i q[4];
  __m512 scale, min;
};

template <Type type>
struct FourBlocksLayout {
  using G = Gemv<type>;
  static constexpr int GROUP = 32, CHUNK_BYTES = COLS / G::WEIGHTS * G::BYTES;
  static constexpr bool MINS = type == Type::Q4_1 || type == Type::Q5_1;
  static constexpr bool SPLIT_MINS = false;
  static constexpr int OFFSET = MINS                   ? 0
                                : type == Type::Q4_0   ? 8
                                : type == Type::Q5_0   ? 16
                                : type == Type::IQ4_NL ? 128
                                                       : 12;
  static constexpr int column(int v, int i) {
    return 128 * (v / 2) + 32 * (i / 4) + 16 * (v % 2) + 4 * (i % 4);
  }
  static constexpr int scale_lane(int g) { return g; }
  static constexpr int min_lane(int g) { return 8 + g; }

  static CONIFER_INLINE void unpack(const uint8_t* data, RowVectors& out) {
    const typename G::W a = G::unpack(typename G::Whole{data}),
                        b = G::unpack(typename G::Whole{data + G::BYTES});
    out.q[0] = a.low;
    out.q[1] = a.high;
    out.q[2] = b.low;
    out.q[3] = b.high;
    const __m512i firsts =
        _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    out.scale = _mm512_permutex2var_ps(a.scale, firsts, b.scale);
    if constexpr (MINS)
      out.scale = _mm512_mask_blend_ps(0xff00, out.scale,
                                       _mm512_permutex2var_ps(a.min, firsts, b.min));
  }
};

struct Q8Layout {
  using G = Gemv<Type::Q8_0>;
  static constexpr int GROUP = 32, CHUNK_BYTES = 2 * G::BYTES, OFFSET = 128;
  static constexpr bool MINS = false, SPLIT_MINS = false;
  static constexpr int column(int v, int i) { return 64 * v + 4 * i; }
  static constexpr int scale_lane(int g) { return g; }
  static constexpr int min_lane(int g) { return g; }

  static CONIFER_INLINE void unpack(const uint8_t* data, RowVectors& out) {
    const G::W a = G::unpack(typename G::Whole{data}),
                        b = G::unpack(typename G::Whole{data + G::BYTES});
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

template <Type type>
struct SuperLayout {
  using G = Gemv<type>;
  static constexpr int GROUP = 32, CHUNK_BYTES = G::BYTES, OFFSET = 0;
  static constexpr bool MINS = true, SPLIT_MINS = false;
  static constexpr int column(int v, int i) {
    return 64 * (i / 4) + 32 * (v / 2) + 16 * (v % 2) + 4 * (i % 4);
  }
  static constexpr int scale_lane(int g) { return g / 4 * 8 + g % 4; }
  static constexpr int min_lane(int g) { return scale_lane(g) + 4; }

  static CONIFER_INLINE void unpack(const uint8_t* data, RowVectors& out) {
    const typename G::W w = G::unpack(data);
    out.q[0] = w.even[0];
    out.q[1] = w.even[1];
    out.q[2] = w.odd[0];
    out.q[3] = w.odd[1];
    // Minima are taken away; and Q4_K's odd blocks are 16 times too large.
    const float odd = type == Type::Q4_K ? 0x1p-4f : 1.0f;
    const __m512 factors =
        _mm512_setr_ps(1, odd, 1, odd, -1, -1, -1, -1, 1, odd, 1, odd, -1, -1, -1, -1);
    out.scale = _mm512_mul_ps(w.mixed, factors);
  }
};

struct XSLayout {
  using G = Gemv<Type::IQ4_XS>;
  static constexpr int GROUP = 32, CHUNK_BYTES = G::BYTES, OFFSET = 128;
  static constexpr bool MINS = false, SPLIT_MINS = false;
  static constexpr int column(int v, int i) {
    return 128 * (v / 2) + 32 * (i / 4) + 16 * (v % 2) + 4 * (i % 4);
  }
  static constexpr int scale_lane(int g) { return g; }
  static constexpr int min_lane(int g) { return g; }

  static CONIFER_INLINE void unpack(const uint8_t* data, RowVectors& out) {
    const G::W w = G::unpack(data);
    out.q[0] = w.low[0];
    out.q[1] = w.high[0];
    out.q[2] = w.low[1];
    out.q[3] = w.high[1];
    out.scale = w.scale;
  }
};

template <Type type>
struct SixteensLayout {
  using G = Gemv<type>;
  static constexpr int GROUP = 16, CHUNK_BYTES = G::BYTES;
  static constexpr bool MINS = type == Type::Q2_K, SPLIT_MINS = MINS;
  static constexpr int OFFSET = type == Type::Q6_K ? 32 : type == Type::Q3_K ? 4 : 0;
  static constexpr int column(int v, int i) { return 64 * v + 4 * i; }
  static constexpr int scale_lane(int g) { return g; }
  static constexpr int min_lane(int g) { return g; }

  static CONIFER_INLINE void unpack(const uint8_t* data, RowVectors& out) {
    const typename G::W w = G::unpack(data);
    for (int i = 0; i < 4; ++i) out.q[i] = w.q[i];
    out.scale = w.scale;
    if constexpr (MINS) out.min = w.min;
  }
};

template <Type type>
struct Layout : FourBlocksLayout<type> {};
template <>
struct Layout<Type::Q8_0> : Q8Layout {};
template <>
struct Layout<Type::IQ4_XS> : XSLayout {};
template <>
struct Layout<Type::Q4_K> : SuperLayout<Type::Q4_K> {};
template <>
struct Layout<Type::Q5_K> : SuperLayout<Type::Q5_K> {};
template <>
struct Layout<Type::Q2_K> : SixteensLayout<Type::Q2_K> {};
template <>
struct Layout<Type::Q3_K> : SixteensLayout<Type::Q3_K> {};
template <>
struct Layout<Type::Q6_K> : SixteensLayout<Type::Q6_K> {};

// Sixteen vectors of dwords, rows to columns.
CONIFER_INLINE void transpose(__m512i* v) {
  __m512i u[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512i a = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    const __m512i b = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    const __m512i c = _mm512_unpacklo_epi32(v[i + 2], v[i + 3]);
    const __m512i d = _mm512_unpackhi_epi32(v[i + 2], v[i + 3]);
    u[i] = _mm512_unpacklo_epi64(a, c);
    u[i + 1] = _mm512_unpackhi_epi64(a, c);
    u[i + 2] = _mm512_unpacklo_epi64(b, d);
    u[i + 3] = _mm512_unpackhi_epi64(b, d);
  }
  // u[4j + i]: in 128-bit lane l, dword 4l + i of rows 4j .. 4j + 3.
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i a = _mm512_shuffle_i64x2(u[i], u[4 + i], 0x88);
    const __m512i b = _mm512_shuffle_i64x2(u[i], u[4 + i], 0xdd);
    const __m512i c = _mm512_shuffle_i64x2(u[8 + i], u[12 + i], 0x88);
    const __m512i d = _mm512_shuffle_i64x2(u[8 + i], u[12 + i], 0xdd);
    v[i] = _mm512_shuffle_i64x2(a, c, 0x88);
    v[8 + i] = _mm512_shuffle_i64x2(a, c, 0xdd);
    v[4 + i] = _mm512_shuffle_i64x2(b, d, 0x88);
    v[12 + i] = _mm512_shuffle_i64x2(b, d, 0xdd);
  }
}

CONIFER_INLINE void transpose_floats(const RowVectors* rows, __m512 RowVectors::*which,
                                     __m512i* v) {
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) v[r] = _mm512_castps_si512(rows[r].*which);
  transpose(v);
}

// 16 rows (fewer: the last is repeated) of one chunk, into one half of the panel.
template <class L>
void unpack_half(const uint8_t* data, int64_t stride, int rows, int cols, int half, Panel& panel) {
  RowVectors vectors[16];
  for (int r = 0; r < 16; ++r) {
    const uint8_t* row = data + std::min(r, rows - 1) * stride;
    if (cols == COLS) {
      L::unpack(row, vectors[r]);
      _mm_prefetch(row + L::CHUNK_BYTES, _MM_HINT_T0);
      _mm_prefetch(row + L::CHUNK_BYTES + 64, _MM_HINT_T0);
      if (L::CHUNK_BYTES > 128) _mm_prefetch(row + L::CHUNK_BYTES + 128, _MM_HINT_T0);
    } else {
      alignas(64) uint8_t padded[L::CHUNK_BYTES] = {};
      std::memcpy(padded, row, static_cast<size_t>(cols * L::CHUNK_BYTES / COLS));
      L::unpack(padded, vectors[r]);
    }
  }
  __m512i v[16];
  for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) v[r] = vectors[r].q[i];
    transpose(v);
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) _mm512_store_si512(panel.q[L::column(i, j) / 4][half], v[j]);
  }
  transpose_floats(vectors, &RowVectors::scale, v);
#pragma GCC unroll 16
  for (int g = 0; g < COLS / L::GROUP; ++g) {
    _mm512_store_si512(panel.scale[g] + 16 * half, v[L::scale_lane(g)]);
    if constexpr (L::MINS && !L::SPLIT_MINS)
      _mm512_store_si512(panel.min[g] + 16 * half, v[L::min_lane(g)]);
  }
  if constexpr (L::SPLIT_MINS) {
    transpose_floats(vectors, &RowVectors::min, v);
#pragma GCC unroll 16
    for (int g = 0; g < 16; ++g) _mm512_store_si512(panel.min[g] + 16 * half, v[g]);
  }
}

}  // namespace
}  // namespace conifer
