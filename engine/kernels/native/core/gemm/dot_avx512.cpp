// AVX-512 (F, BW, DQ, VL, VNNI): products with one token, and quantisation of activations.
#if defined(__x86_64__)
#include "isa/avx512.h"

#include <cstdlib>

#include "gemm/gemm_amx.h"
#include "gemm/gemm_avx512.h"
#include "gemm/rowwise.h"

namespace conifer::gemm {
namespace {

using namespace isa;  // the small vector functions

struct Avx512 {
  static constexpr int LANES = 16;
  using Acc = __m512;

  static Acc zero() { return _mm512_setzero_ps(); }
  static float total(Acc acc) { return _mm512_reduce_add_ps(acc); }
  static Acc fma(Acc acc, __m512 w, const float* x) {
    return _mm512_fmadd_ps(w, _mm512_loadu_ps(x), acc);
  }
  static __m512 load_f32(const uint8_t* w) {
    return _mm512_loadu_ps(reinterpret_cast<const float*>(w));
  }
  static __m256i load_halves(const uint8_t* w) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
  }
  static __m512 load_f16(const uint8_t* w) { return _mm512_cvtph_ps(load_halves(w)); }
  static __m512 load_bf16(const uint8_t* w) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_halves(w)), 16));
  }
};

// Grow-only scratch memory for one thread.
void* scratch(size_t bytes) {
  struct Buffer {
    void* data = nullptr;
    size_t size = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffer;
  if (bytes > buffer.size) {
    std::free(buffer.data);
    buffer.data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    buffer.size = buffer.data ? bytes : 0;
    if (!buffer.data) std::abort();
  }
  return buffer.data;
}

// Sum the lanes of each of four vectors.
CONIFER_INLINE __m128 totals(const __m512* v) {
  const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
  const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
  const __m512 c = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  const __m256 d = _mm256_add_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));
  return _mm_add_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1));
}

// How far ahead weights are prefetched. They are read as one stream, so prefetching reaches into
// the next rows. Past the last row, it is harmless.
constexpr int64_t AHEAD_BYTES = 4096;

template <class G, int ROWS>
void multiply_group(const uint8_t* data, int64_t stride, int64_t cols, const typename G::X* x,
                    float* y) {
  __m512 acc[ROWS];
  for (int r = 0; r < ROWS; ++r) acc[r] = _mm512_setzero_ps();
  const int64_t groups = cols / G::WEIGHTS;
  const int64_t ahead = stride * ROWS > AHEAD_BYTES ? stride * ROWS : AHEAD_BYTES;
  const uint8_t* next = data + ahead;
  for (int64_t g = 0; g < groups; ++g) {
    for (int i = 0; i < ROWS * G::BYTES; i += 64) _mm_prefetch(next + i, _MM_HINT_T0);
    next += ROWS * G::BYTES;
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      const typename G::W w = G::unpack(typename G::Whole{data + r * stride + g * G::BYTES});
      acc[r] = G::dot(w, x[g], acc[r]);
    }
  }
  if constexpr (G::PARTIAL) {
    if (const int64_t rest = cols % G::WEIGHTS) {  // the remaining blocks do not fill a group
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        const typename G::Part part{data + r * stride + groups * G::BYTES, static_cast<int>(rest)};
        acc[r] = G::dot(G::unpack(part), x[groups], acc[r]);
      }
    }
  }
  if constexpr (ROWS == 4) {
    _mm_storeu_ps(y, totals(acc));
  } else {
    for (int r = 0; r < ROWS; ++r) y[r] = _mm512_reduce_add_ps(acc[r]);
  }
}

template <class G>
void multiply_single(const Matrix& w, const TokenView& x, float* y, int64_t row0, int64_t row1) {
  using X = typename G::X;
  const int64_t groups = (w.cols + G::WEIGHTS - 1) / G::WEIGHTS;
  X* prepared = static_cast<X*>(scratch(static_cast<size_t>(groups) * sizeof(X)));
  for (int64_t g = 0; g < groups; ++g) prepared[g].prepare(x, g * G::WEIGHTS);
  const int64_t stride = w.stride();
  int64_t row = row0;
  for (; row + 4 <= row1; row += 4)
    multiply_group<G, 4>(w.data + row * stride, stride, w.cols, prepared, y + row);
  for (; row < row1; ++row)
    multiply_group<G, 1>(w.data + row * stride, stride, w.cols, prepared, y + row);
}

}  // namespace

void quantize_avx512(const float* x, int64_t n, const quant::TokenSlot& out) {
  for (int64_t i = 0; i < n / 32; ++i) {
    const __m512 a = _mm512_loadu_ps(x + 32 * i), b = _mm512_loadu_ps(x + 32 * i + 16);
    float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    if (_mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q)) largest = NAN;  // a maximum may ignore NaN
    const float scale = largest / 127.0f;
    const __m512 inverse = _mm512_set1_ps(counts(largest) ? 127.0f / largest : 0.0f);
    const __mmask16 used = counts(largest) ? 0xffff : 0;
    const __m512i qa = _mm512_maskz_cvtps_epi32(used, _mm512_mul_ps(a, inverse));
    const __m512i qb = _mm512_maskz_cvtps_epi32(used, _mm512_mul_ps(b, inverse));
    __m128i* q = reinterpret_cast<__m128i*>(out.q + 32 * i);
    _mm_storeu_si128(q, _mm512_cvtsepi32_epi8(qa));
    _mm_storeu_si128(q + 1, _mm512_cvtsepi32_epi8(qb));
    const int32_t first = _mm512_reduce_add_epi32(qa), second = _mm512_reduce_add_epi32(qb);
    out.scale[i] = scale;
    out.sum[i] = scale * static_cast<float>(first + second);
    out.sum16[2 * i] = scale * static_cast<float>(first);
    out.sum16[2 * i + 1] = scale * static_cast<float>(second);
    out.isum[i] = first + second;
    out.isum16[2 * i] = first;
    out.isum16[2 * i + 1] = second;
  }
}

static bool single_or_float(const Matrix& w, const TokenView* x, quant::Tokens kind, int64_t n,
                            float* y, int64_t y_stride, int64_t row0, int64_t row1) {
  quant::with_float(w.type, [&](auto type) {
    multiply_float<Avx512, decltype(type)>(w, x, n, y, y_stride, row0, row1);
  });
  if (quant::is_float(w.type)) return true;
  if (kind != quant::Tokens::Single) return false;
  quant::with_quantized(w.type, [&](auto type) {
    for (int64_t t = 0; t < n; ++t)
      multiply_single<quant::Avx512Of<decltype(type)>>(w, x[t], y + t * y_stride, row0, row1);
  });
  return true;
}

void multiply_avx512(const Matrix& w, const TokenView* x, quant::Tokens kind, int64_t n, float* y,
                     int64_t y_stride, int64_t row0, int64_t row1) {
  if (n <= 0 || row0 >= row1) return;
  if (!single_or_float(w, x, kind, n, y, y_stride, row0, row1))
    multiply_many_avx512(w, x, n, y, y_stride, row0, row1);
}

void multiply_amx(const Matrix& w, const TokenView* x, quant::Tokens kind, int64_t n, float* y,
                  int64_t y_stride, int64_t row0, int64_t row1) {
  const bool tiles =
      kind == quant::Tokens::Prompt || (kind == quant::Tokens::Block && n >= TILE_TOKENS);
  if (tiles && quant::fits_tiles(w.type) && n > 0 && row0 < row1)
    multiply_many_amx(w, x, n, y, y_stride, row0, row1);
  else multiply_avx512(w, x, kind, n, y, y_stride, row0, row1);
}

}  // namespace conifer::gemm
#endif
