// Many tokens: a blocked GEMM in tiles of bfloat16, with sums in float32.
//
// Weights are unpacked to bfloat16, 32 rows of a chunk of columns at a time, and activations are
// rounded to it, which costs less truth than 8 bits with a scale for 32 would. Sums of two tiles of
// rows by two of tokens stay in four of the eight tiles while a chunk passes. Rows of weights are
// the rows of the product, because that needs no turning of what is unpacked; tokens are turned
// once a call.
#include "gemm_amx.h"

#include "amx.h"

#if defined(__x86_64__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)

#include "avx512.h"  // first: it silences warnings about the intrinsics it includes

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "panel_avx512.h"

namespace conifer {
namespace {

constexpr int SIDE = 16;       // rows of weights, or tokens, of a tile
constexpr int DEPTH = 32;      // columns of a tile
constexpr int MOST_COLS = 512;  // of a chunk: 32 rows of it stay in the first-level cache

TileConfig tile_config() {
  TileConfig config;
  for (int i = 0; i < 8; ++i) config.shape(i, SIDE, 64);
  return config;
}

using Halves = uint16_t;  // bfloat16

CONIFER_INLINE __m512i to_bf16(__m512 first, __m512 second) {
  return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}

// Layouts whose vectors hold the first and the second halves of four groups, not two whole groups.
template <class L>
constexpr bool HALVED = L::column(1, 0) == 16;

// A chunk of a row: 256 weights, or fewer blocks that end it.
template <class L>
CONIFER_INLINE void unpack_row(const uint8_t* row, int cols, Halves* out) {
  RowVectors v;
  if (cols == COLS) {
    L::unpack(row, v);
    for (int i = 0; i < L::CHUNK_BYTES; i += 64)
      _mm_prefetch(row + L::CHUNK_BYTES + i, _MM_HINT_T0);
  } else {
    alignas(64) uint8_t padded[L::CHUNK_BYTES] = {};
    std::memcpy(padded, row, static_cast<size_t>(cols * L::CHUNK_BYTES / COLS));
    L::unpack(padded, v);
  }
  alignas(64) float scale[16], min[16];
  _mm512_store_ps(scale, v.scale);
  if constexpr (L::SPLIT_MINS) _mm512_store_ps(min, v.min);
  if constexpr (!L::MINS) _mm512_store_ps(min, times(v.scale, -L::OFFSET));
  // Lane `lane` of vector `i`: 16 weights.
  const auto floats = [&](int i, int lane) {
    const int group = L::column(i, 4 * lane) / L::GROUP;
    const __m128i q = _mm512_extracti32x4_epi32(v.q[i], 0);
    (void)q;
    __m128i lanes[4] = {_mm512_castsi512_si128(v.q[i]), _mm512_extracti32x4_epi32(v.q[i], 1),
                        _mm512_extracti32x4_epi32(v.q[i], 2),
                        _mm512_extracti32x4_epi32(v.q[i], 3)};
    const __m512 w = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(lanes[lane]));
    const float bias = L::MINS && !L::SPLIT_MINS ? scale[L::min_lane(group)]
                                                 : min[L::SPLIT_MINS ? L::min_lane(group)
                                                                     : L::scale_lane(group)];
    return _mm512_fmadd_ps(w, _mm512_set1_ps(scale[L::scale_lane(group)]), _mm512_set1_ps(bias));
  };
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      if constexpr (HALVED<L>) {
        const int a = i / 2 * 2, lane = i % 2 * 2 + k;
        _mm512_storeu_si512(out + L::column(a, 4 * lane),
                            to_bf16(floats(a, lane), floats(a + 1, lane)));
      } else {
        _mm512_storeu_si512(out + L::column(i, 8 * k),
                            to_bf16(floats(i, 2 * k), floats(i, 2 * k + 1)));
      }
    }
}

// 32 columns of 16 tokens (fewer: the others are zero): (16 pairs of columns, 16 tokens, 2).
void load_tokens(const TokenView* x, int tokens, int64_t n, Halves* out) {
  __m512i v[SIDE];
#pragma GCC unroll 16
  for (int t = 0; t < SIDE; ++t)
    v[t] = t < tokens ? to_bf16(_mm512_loadu_ps(x[t].x + n), _mm512_loadu_ps(x[t].x + n + 16))
                      : _mm512_setzero_si512();
  transpose(v);
#pragma GCC unroll 16
  for (int k = 0; k < SIDE; ++k) _mm512_storeu_si512(out + k * DEPTH, v[k]);
}

// Sums of 32 rows by 32 tokens, (token tile, row tile, 16, 16), += a chunk: rows `row_stride`
// apart, and tokens, whose two tiles are `token_stride` apart. `fresh`: the sums begin at zero.
void multiply_chunk(const Halves* rows, int64_t row_stride, const Halves* tokens,
                    int64_t token_stride, int64_t cols, bool fresh, float* sums) {
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + 256, 64);
    _tile_loadd(2, sums + 512, 64);
    _tile_loadd(3, sums + 768, 64);
  }
  const int64_t bytes = 2 * row_stride;
  for (int64_t n = 0; n < cols; n += DEPTH) {
    _tile_loadd(4, rows + n, bytes);
    _tile_loadd(6, tokens + n * SIDE, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, rows + SIDE * row_stride + n, bytes);
    _tile_dpbf16ps(1, 5, 6);
    _tile_loadd(7, tokens + token_stride + n * SIDE, 64);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
}

// Sums (16 rows, 16 tokens) to y (tokens, rows).
void store_turned(const float* sums, int rows, int tokens, float* y, int64_t y_stride) {
  if (rows <= 0 || tokens <= 0) return;
  __m512i v[SIDE];
#pragma GCC unroll 16
  for (int r = 0; r < SIDE; ++r) v[r] = load512(sums + r * SIDE);
  transpose(v);
  const __mmask16 stored = static_cast<__mmask16>((1u << std::min(rows, SIDE)) - 1);
#pragma GCC unroll 16
  for (int t = 0; t < SIDE; ++t)
    if (t < tokens) _mm512_mask_storeu_ps(y + t * y_stride, stored, _mm512_castsi512_ps(v[t]));
}

// Memory of the thread, aligned; it only grows.
template <class T>
class Kept {
 public:
  T* need(int64_t count) {
    if (count > capacity_) {
      const size_t size = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
      data_.reset(static_cast<T*>(std::aligned_alloc(64, size)));
      if (!data_) std::abort();
      capacity_ = count;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T[], Free> data_;
  int64_t capacity_ = 0;
};

// Rows row .. row + 32 of the chunk from column n on.
template <class L>
void unpack_rows(const Matrix& w, int64_t row, int rows, int64_t n, int64_t cols, Halves* out,
                 int64_t stride) {
  const uint8_t* data = w.data + row * w.stride() + n / COLS * L::CHUNK_BYTES;
  for (int64_t c = 0; c < cols; c += COLS)
    for (int r = 0; r < rows; ++r)
      unpack_row<L>(data + r * w.stride() + c / COLS * L::CHUNK_BYTES,
                    static_cast<int>(std::min<int64_t>(COLS, cols - c)), out + r * stride + c);
}

template <class L>
void multiply_tiles(const Matrix& w, const TokenView* x, int64_t tokens, float* y,
                    int64_t y_stride, int64_t row0, int64_t row1) {
  static thread_local Kept<Halves> kept_tokens, kept_rows;
  static thread_local Kept<float> kept_sums;
  const int64_t pairs = (tokens + ROWS - 1) / ROWS;  // of token tiles
  const int64_t token_stride = w.cols * SIDE;
  Halves* given = kept_tokens.need(2 * pairs * token_stride);
  for (int64_t t = 0; t < pairs * ROWS; t += SIDE)
    for (int64_t n = 0; n < w.cols; n += DEPTH)
      load_tokens(x + t, static_cast<int>(std::clamp<int64_t>(tokens - t, 0, SIDE)), n,
                  given + t * w.cols + n * SIDE);
  const int64_t stride = MOST_COLS + DEPTH;  // off a power of two
  Halves* rows = kept_rows.need(ROWS * (stride + COLS));
  float* sums = kept_sums.need(pairs * 1024);
  configure(tile_config());
  for (int64_t row = row0; row < row1; row += ROWS) {
    const int count = static_cast<int>(std::min<int64_t>(ROWS, row1 - row));
    for (int64_t n = 0; n < w.cols; n += MOST_COLS) {
      const int64_t cols = std::min<int64_t>(MOST_COLS, w.cols - n);
      unpack_rows<L>(w, row, count, n, cols, rows, stride);
      asm volatile("" : : : "memory");  // tiles are loaded behind the compiler's back
      for (int64_t p = 0; p < pairs; ++p)
        multiply_chunk(rows, stride, given + 2 * p * token_stride + n * SIDE, token_stride, cols,
                       n == 0, sums + p * 1024);
    }
    for (int64_t p = 0; p < pairs; ++p)
      for (int i = 0; i < 4; ++i) {
        const int first_row = i % 2 * SIDE;
        const int64_t token = p * ROWS + i / 2 * SIDE;
        store_turned(sums + p * 1024 + i * 256, count - first_row,
                     static_cast<int>(std::min<int64_t>(SIDE, tokens - token)),
                     y + token * y_stride + row + first_row, y_stride);
      }
  }
  _tile_release();
}

}  // namespace

bool amx_multiplies() {
  static const bool has = __builtin_cpu_supports("amx-bf16") &&
                          __builtin_cpu_supports("avx512bf16") && amx_granted();
  return has;
}

void multiply_many_amx(const Matrix& w, const TokenView* x, int64_t tokens, float* y,
                       int64_t y_stride, int64_t row0, int64_t row1) {
  with_type(w.type, [&](auto type) {
    multiply_tiles<Layout<decltype(type)::value>>(w, x, tokens, y, y_stride, row0, row1);
  });
}

}  // namespace conifer

#else

namespace conifer {

bool amx_multiplies() { return false; }
void multiply_many_amx(const Matrix&, const TokenView*, int64_t, float*, int64_t, int64_t,
                       int64_t) {}

}  // namespace conifer

#endif
