// Weight panels for many tokens: 32 rows by 256 columns, unpacked to unsigned bytes in
// multiplication order. A vector holds 4 consecutive columns of 16 rows.
#pragma once

#include <algorithm>

#include "quant/types.h"

namespace conifer::gemm {
namespace {

using namespace isa;  // the small vector functions
using quant::RowVectors;

constexpr int ROWS = 32;
constexpr int COLS = 256;

struct alignas(64) Panel {
  uint8_t q[COLS / 4][2][64];
  float scale[16][ROWS];  // for each group of columns
  float min[16][ROWS];
};

// Transpose sixteen vectors of dwords.
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

// Scales, a vector for each row, to columns of one half of the panel.
template <class L>
CONIFER_INLINE void store_scales(__m512i* v, int half, Panel& panel) {
  transpose(v);
#pragma GCC unroll 16
  for (int g = 0; g < COLS / L::GROUP; ++g) {
    _mm512_store_si512(panel.scale[g] + 16 * half, v[L::scale_lane(g)]);
    if constexpr (L::MINS && !L::SPLIT_MINS)
      _mm512_store_si512(panel.min[g] + 16 * half, v[L::min_lane(g)]);
  }
}

template <class L>
CONIFER_INLINE void prefetch_chunk(const uint8_t* data) {
#pragma GCC unroll 4
  for (int i = 0; i < L::CHUNK_BYTES; i += 64) _mm_prefetch(data + i, _MM_HINT_T0);
}

// unpack_half for nibbles that lie in order: parted after the transposition, which halves it. High
// nibbles stay 16 times too large, as L's scales expect.
template <class L>
void unpack_nibbles(const uint8_t* data, const uint8_t* next, int64_t stride, int rows, int half,
                    Panel& panel) {
  __m512i v[16];
  const auto row = [&](int r) { return std::min(r, rows - 1) * stride; };
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) v[r] = load512(data + row(r) + L::NIBBLES_AT + 64 * i);
    transpose(v);
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      const int at = 16 * (2 * i + j / 8) + j % 8;  // in fours of columns
      _mm512_store_si512(panel.q[at][half], _mm512_and_si512(v[j], bytes(0x0f)));
      _mm512_store_si512(panel.q[at + 8][half], _mm512_and_si512(v[j], bytes(0xf0)));
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) {
    prefetch_chunk<L>(next + row(r));
    v[r] = _mm512_castps_si512(L::chunk_scales(data + row(r)));
  }
  store_scales<L>(v, half, panel);
}

// Unpack one chunk of 16 rows to one half of the panel, in format L (quant/avx512.h). If there are
// fewer rows, the last row is repeated. next: the chunk that comes after it, to be prefetched.
template <class L>
void unpack_half(const uint8_t* data, const uint8_t* next, int64_t stride, int rows, int cols,
                 int half, Panel& panel) {
  if constexpr (requires { requires L::NIBBLES_AT > 0; })
    return unpack_nibbles<L>(data, next, stride, rows, half, panel);
  RowVectors vectors[16];
  for (int r = 0; r < 16; ++r) {
    const int64_t at = std::min(r, rows - 1) * stride;
    const uint8_t* row = data + at;
    prefetch_chunk<L>(next + at);
    if (cols == COLS) {
      L::unpack_chunk(row, vectors[r]);
    } else {
      alignas(64) uint8_t padded[L::CHUNK_BYTES] = {};
      std::memcpy(padded, row, static_cast<size_t>(cols * L::CHUNK_BYTES / COLS));
      L::unpack_chunk(padded, vectors[r]);
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
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) v[r] = _mm512_castps_si512(vectors[r].scale);
  store_scales<L>(v, half, panel);
  if constexpr (L::SPLIT_MINS) {
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) v[r] = _mm512_castps_si512(vectors[r].min);
    transpose(v);
#pragma GCC unroll 16
    for (int g = 0; g < 16; ++g) _mm512_store_si512(panel.min[g] + 16 * half, v[g]);
  }
}

}  // namespace
}  // namespace conifer::gemm
