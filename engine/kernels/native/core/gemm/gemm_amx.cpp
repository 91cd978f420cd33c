// Many tokens: a blocked GEMM on bfloat16 tiles, with float32 sums.
//
// Weights are unpacked to bfloat16, 32 rows of a chunk of columns at a time. Activations are
// rounded to bfloat16, which loses less precision than int8 with one scale per 32 values. During a
// chunk, the sums for two row tiles by two token tiles stay in four of the eight tiles. Weight rows
// become the rows of the product, so unpacked weights need no transposition. Tokens are transposed
// once per call.
#include "gemm/gemm_amx.h"

#include "isa/amx.h"
#include "isa/kernels.h"

#if defined(__x86_64__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)

#include "isa/avx512.h"

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "gemm/panel_avx512.h"

namespace conifer::gemm {

using quant::Matrix;
using quant::TokenView;
using namespace isa;  // the small vector functions, and tiles

namespace {

constexpr int SIDE = 16;        // weight rows, or tokens, per tile
constexpr int DEPTH = 32;       // columns per tile
constexpr int MOST_COLS = 512;  // per chunk; 32 rows of a chunk fit the L1 cache

TileConfig tile_config() {
  TileConfig config;
  for (int i = 0; i < 8; ++i) config.shape(i, SIDE, 64);
  return config;
}

using Halves = uint16_t;  // bfloat16

CONIFER_INLINE __m512i to_bf16(__m512 first, __m512 second) {
  return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}

// Layouts whose vectors hold the first or second halves of four groups, not two whole groups.
template <class L>
constexpr bool HALVED = L::column(1, 0) == 16;

// The 16 possible weights in a group, by nibble.
template <class L>
CONIFER_INLINE __m512i choices(__m512 values, const float* scales, int group) {
  const __m512 scale = _mm512_set1_ps(scales[L::scale_lane(group)]);
  __m512 w;
  if constexpr (L::MINS)
    w = _mm512_fmadd_ps(values, scale, _mm512_set1_ps(scales[L::min_lane(group)]));
  else w = _mm512_mul_ps(values, scale);
  return _mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh(w));
}

template <class T>
CONIFER_INLINE void look_up(const uint8_t* row, int groups, const float* scales, Halves* out) {
  using L = quant::Avx512Of<T>;
  constexpr quant::Nibbles N = T::NIBBLES;
  const __m512 values = _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(N.values))));
  const __m512i mask = _mm512_set1_epi16(15);
  if constexpr (N.pairs) {
    const __m512 shifted =
        times(values, 16);  // the layout's scales for second groups are 16 times too small
#pragma GCC unroll 4
    for (int g = 0; g < groups; g += 2) {
      const uint8_t* data = row + N.first + g / 2 * N.step;
      const __m512i words =
          _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)));
      _mm512_storeu_si512(out + 32 * g, _mm512_permutexvar_epi16(_mm512_and_si512(words, mask),
                                                                 choices<L>(values, scales, g)));
      _mm512_storeu_si512(out + 32 * g + 32,
                          _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4),
                                                   choices<L>(shifted, scales, g + 1)));
    }
  } else {
    const __m512i shifts = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
#pragma GCC unroll 4
    for (int g = 0; g < groups; ++g) {
      const uint8_t* data = row + N.first + g * N.step;
      const __m512i words = _mm512_cvtepu8_epi16(
          _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data))));
      const __m512i index = _mm512_and_si512(_mm512_srlv_epi16(words, shifts), mask);
      _mm512_storeu_si512(out + 32 * g,
                          _mm512_permutexvar_epi16(index, choices<L>(values, scales, g)));
    }
  }
}

template <class T>
CONIFER_INLINE void convert(const RowVectors& v, const float* scale, Halves* out) {
  using L = quant::Avx512Of<T>;
  alignas(64) float min[16];
  alignas(64) uint8_t q[4][64];
  if constexpr (!L::MINS) _mm512_store_ps(min, times(v.scale, -L::OFFSET));
  else if constexpr (L::OFFSET != 0)
    _mm512_store_ps(min, _mm512_fmadd_ps(v.scale, _mm512_set1_ps(-L::OFFSET), v.min));
  else _mm512_store_ps(min, L::SPLIT_MINS ? v.min : v.scale);
  for (int i = 0; i < 4; ++i) _mm512_store_si512(q[i], v.q[i]);
  // Lane `lane` of vector `i`: 16 weights that share a scale.
  const auto floats = [&](int i, int lane) {
    const int group = L::column(i, 4 * lane) / L::GROUP, at = L::scale_lane(group);
    const __m128i part = _mm_load_si128(reinterpret_cast<const __m128i*>(q[i] + 16 * lane));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(part)),
                           _mm512_set1_ps(scale[at]),
                           _mm512_set1_ps(min[L::MINS ? L::min_lane(group) : at]));
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

// A chunk of a row: 256 weights, or fewer at the end of the row.
template <class T>
CONIFER_INLINE void unpack_row(const uint8_t* row, int cols, Halves* out) {
  using L = quant::Avx512Of<T>;
  alignas(64) uint8_t padded[L::CHUNK_BYTES];
  if (cols == COLS) {
    for (int i = 0; i < L::CHUNK_BYTES; i += 64)
      _mm_prefetch(row + L::CHUNK_BYTES + i, _MM_HINT_T0);
  } else {
    std::memset(padded, 0, L::CHUNK_BYTES);
    std::memcpy(padded, row, static_cast<size_t>(cols * L::CHUNK_BYTES / COLS));
    row = padded;
  }
  RowVectors v;
  L::unpack_chunk(row, v);
  alignas(64) float scale[16];
  _mm512_store_ps(scale, v.scale);
  if constexpr (T::NIBBLES.step > 0 && L::GROUP == 32) look_up<T>(row, cols / 32, scale, out);
  else convert<T>(v, scale, out);
}

// Load 32 columns for up to 16 tokens: (16 pairs of columns, 16 tokens, 2). row(t) is the start of
// token t. Missing tokens are zero.
template <class Row>
CONIFER_INLINE void load_tokens(Row row, int64_t tokens, int64_t n, Halves* out) {
  __m512i v[SIDE];
#pragma GCC unroll 16
  for (int t = 0; t < SIDE; ++t)
    v[t] = t < tokens ? to_bf16(_mm512_loadu_ps(row(t) + n), _mm512_loadu_ps(row(t) + n + 16))
                      : _mm512_setzero_si512();
  transpose(v);
#pragma GCC unroll 16
  for (int k = 0; k < SIDE; ++k) _mm512_storeu_si512(out + k * DEPTH, v[k]);
}

// Add a chunk to the sums for 32 rows by 32 tokens (token tile, row tile, 16, 16). Rows are
// `row_stride` apart, and the two token tiles are `token_stride` apart. `fresh`: start from zero.
void multiply_pair(const Halves* rows, int64_t row_stride, const Halves* tokens,
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

// The same for only the first token tile. Column steps alternate between tiles.
void multiply_single(const Halves* rows, int64_t row_stride, const Halves* tokens, int64_t cols,
                     bool fresh, float* sums) {
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
  } else {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + 256, 64);
  }
  const int64_t bytes = 2 * row_stride;
  int64_t n = 0;
  for (; n + DEPTH < cols; n += 2 * DEPTH) {
    _tile_loadd(2, rows + n, bytes);
    _tile_loadd(3, rows + SIDE * row_stride + n, bytes);
    _tile_loadd(4, tokens + n * SIDE, 64);
    _tile_dpbf16ps(0, 2, 4);
    _tile_dpbf16ps(1, 3, 4);
    _tile_loadd(5, rows + n + DEPTH, bytes);
    _tile_loadd(6, rows + SIDE * row_stride + n + DEPTH, bytes);
    _tile_loadd(7, tokens + (n + DEPTH) * SIDE, 64);
    _tile_dpbf16ps(0, 5, 7);
    _tile_dpbf16ps(1, 6, 7);
  }
  if (n < cols) {
    _tile_loadd(2, rows + n, bytes);
    _tile_loadd(3, rows + SIDE * row_stride + n, bytes);
    _tile_loadd(4, tokens + n * SIDE, 64);
    _tile_dpbf16ps(0, 2, 4);
    _tile_dpbf16ps(1, 3, 4);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
}

// Store sums (16 rows, 16 tokens) in y (tokens, rows).
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

// Grow-only aligned memory for one thread.
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

// Rows row .. row + 32 of the chunk that starts at column n.
template <class T>
void unpack_rows(const Matrix& w, int64_t row, int rows, int64_t n, int64_t cols, Halves* out,
                 int64_t stride) {
  constexpr int64_t BYTES = quant::Avx512Of<T>::CHUNK_BYTES;
  const uint8_t* data = w.data + row * w.stride() + n / COLS * BYTES;
  for (int64_t c = 0; c < cols; c += COLS)
    for (int r = 0; r < rows; ++r)
      unpack_row<T>(data + r * w.stride() + c / COLS * BYTES,
                    static_cast<int>(std::min<int64_t>(COLS, cols - c)), out + r * stride + c);
}

struct Room {
  Kept<Halves> tokens, rows;
  Kept<float> sums, more_sums;
};

Room& room() {
  static thread_local Room kept;
  return kept;
}

// Sums for up to 32 rows, starting at `row`, by all tokens:
// (pairs of token tiles, 4 tiles, 16, 16).
void sum_rows(const Matrix& w, int64_t row, int rows, const Halves* x, int64_t tokens,
              float* sums) {
  const int64_t stride = MOST_COLS + DEPTH;  // not a power of two
  const int64_t token_stride = w.cols * SIDE;
  Halves* unpacked = room().rows.need(ROWS * (stride + COLS));
  for (int64_t n = 0; n < w.cols; n += MOST_COLS) {
    const int64_t cols = std::min<int64_t>(MOST_COLS, w.cols - n);
    quant::with_quantized(w.type, [&](auto type) {
      unpack_rows<decltype(type)>(w, row, rows, n, cols, unpacked, stride);
    });
    asm volatile("" : : : "memory");  // the compiler does not see tile loads
    const Halves* given = x + n * SIDE;
    for (int64_t t = 0; t < tokens; t += ROWS, sums += 1024, given += 2 * token_stride) {
      if (tokens - t > SIDE)
        multiply_pair(unpacked, stride, given, token_stride, cols, n == 0, sums);
      else multiply_single(unpacked, stride, given, cols, n == 0, sums);
    }
    sums -= whole_tiles(tokens) / ROWS * 1024;
  }
}

void multiply_given(const Matrix& w, const Halves* x, int64_t tokens, float* y, int64_t y_stride,
                    int64_t row0, int64_t row1) {
  float* sums = room().sums.need(whole_tiles(tokens) * ROWS);
  configure(tile_config());
  for (int64_t row = row0; row < row1; row += ROWS) {
    const int rows = static_cast<int>(std::min<int64_t>(ROWS, row1 - row));
    sum_rows(w, row, rows, x, tokens, sums);
    for (int64_t t = 0; t < tokens; t += SIDE)
      for (int i = 0; i < 2; ++i)
        store_turned(sums + t * ROWS + i * 256, rows - i * SIDE,
                     static_cast<int>(std::min<int64_t>(SIDE, tokens - t)),
                     y + t * y_stride + row + i * SIDE, y_stride);
  }
  _tile_release();
}

}  // namespace

void fill_tile(const float* x, int64_t stride, int64_t tokens, int64_t cols, uint16_t* tile) {
  for (int64_t n = 0; n < cols; n += DEPTH)
    load_tokens([&](int t) { return x + t * stride; }, tokens, n, tile + n * SIDE);
}

void multiply_many_amx(const Matrix& w, const TokenView* x, int64_t tokens, float* y,
                       int64_t y_stride, int64_t row0, int64_t row1) {
  Halves* given = room().tokens.need(whole_tiles(tokens) * w.cols);
  for (int64_t t = 0; t < tokens; t += SIDE)
    for (int64_t n = 0; n < w.cols; n += DEPTH)
      load_tokens([&](int i) { return x[t + i].x; }, tokens - t, n, given + t * w.cols + n * SIDE);
  multiply_given(w, given, tokens, y, y_stride, row0, row1);
}

void multiply_tiles(const Matrix& w, const Activations& x, float* y, int64_t y_stride, int64_t row0,
                    int64_t row1) {
  multiply_given(w, x.tile(0), x.tokens(), y, y_stride, row0, row1);
}

static void rescale(const Matrix& w, float* sums, int64_t count) {
  for (int64_t i = 0; w.scale && i < count; ++i) sums[i] *= *w.scale;
}

void gate_tiles(const Matrix& gate, const Matrix& up, const Activations& x, Activations& y,
                int64_t row0, int64_t row1) {
  const int64_t tokens = x.tokens();
  float* gates = room().sums.need(whole_tiles(tokens) * ROWS);
  float* ups = room().more_sums.need(whole_tiles(tokens) * ROWS);
  // Interleave two rows of 16 tokens into pairs.
  alignas(64) uint16_t order[DEPTH];
  for (int i = 0; i < DEPTH; ++i) order[i] = static_cast<uint16_t>(i / 2 + i % 2 * SIDE);
  const __m512i pairs = _mm512_load_si512(order);
  configure(tile_config());
  for (int64_t row = row0; row < row1; row += ROWS) {
    sum_rows(gate, row, ROWS, x.tile(0), tokens, gates);
    sum_rows(up, row, ROWS, x.tile(0), tokens, ups);
    rescale(gate, gates, whole_tiles(tokens) * ROWS);
    rescale(up, ups, whole_tiles(tokens) * ROWS);
    for (int64_t t = 0; t < tokens; t += SIDE) {
      kernels().silu_multiply(gates + t * ROWS, ups + t * ROWS, SIDE * ROWS, gates + t * ROWS);
      Halves* out = y.tile(t) + row * SIDE;
      for (int r = 0; r < ROWS; r += 2) {
        const float* first = gates + t * ROWS + r * SIDE;
        const __m512i both = to_bf16(_mm512_load_ps(first), _mm512_load_ps(first + SIDE));
        _mm512_storeu_si512(out + r * SIDE, _mm512_permutexvar_epi16(pairs, both));
      }
    }
  }
  _tile_release();
}

}  // namespace conifer::gemm

#else

namespace conifer::gemm {

void fill_tile(const float*, int64_t, int64_t, int64_t, uint16_t*) {}
void multiply_many_amx(const quant::Matrix&, const quant::TokenView*, int64_t, float*, int64_t,
                       int64_t, int64_t) {}
void multiply_tiles(const quant::Matrix&, const Activations&, float*, int64_t, int64_t, int64_t) {}
void gate_tiles(const quant::Matrix&, const quant::Matrix&, const Activations&, Activations&,
                int64_t, int64_t) {}

}  // namespace conifer::gemm

#endif
