// AVX2 with FMA and F16C, row by row.
//
// vpmaddubsw adds pairs of products in 16 bits and saturates. Its operands here are |w| <= 128 and
// x in -127..127 with the sign of w, so a pair is at most 2 * 128 * 127 = 32512, which fits.
#if defined(__x86_64__)
#include <immintrin.h>

#include "gemm/rowwise.h"

namespace conifer::gemm {
namespace {

struct Avx2 {
  static constexpr int LANES = 8;
  using Acc = __m256;

  static Acc zero() { return _mm256_setzero_ps(); }

  static float total(Acc acc) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(acc), _mm256_extractf128_ps(acc, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }

  static __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

  // Products of 32 weights and values: the first 16 in the lower four lanes.
  static __m256 products(const int8_t* weights, const int8_t* values) {
    const __m256i w = load(weights), x = load(values);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }

  template <class T>
  static Acc dot(Acc acc, const Unpacked& w, const TokenView& x, int64_t n) {
    const float* scales = x.scale + n / 32;
    Acc other = zero();  // two sums, so that additions overlap
    for (int i = 0; i < 8; i += 2) {
      acc = _mm256_fmadd_ps(products(w.q + 32 * i, x.q + n + 32 * i), scale<T>(w, scales, i), acc);
      other = _mm256_fmadd_ps(products(w.q + 32 * i + 32, x.q + n + 32 * i + 32),
                              scale<T>(w, scales, i + 1), other);
    }
    if constexpr (T::MINS) {
      const float* sums = x.sum16 + n / 16;
      acc = _mm256_fmadd_ps(_mm256_loadu_ps(w.min), _mm256_loadu_ps(sums), acc);
      other = _mm256_fmadd_ps(_mm256_loadu_ps(w.min + 8), _mm256_loadu_ps(sums + 8), other);
    }
    return _mm256_add_ps(acc, other);
  }

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

 private:
  template <class T>
  static __m256 scale(const Unpacked& w, const float* scales, int i) {
    const __m256 x = _mm256_broadcast_ss(scales + i);
    if constexpr (T::GROUP == 32) return _mm256_mul_ps(_mm256_broadcast_ss(w.scale + 2 * i), x);
    const __m256 both =
        _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_broadcast_ss(w.scale + 2 * i)),
                             _mm_broadcast_ss(w.scale + 2 * i + 1), 1);
    return _mm256_mul_ps(both, x);
  }
};

}  // namespace

void quantize_avx2(const float* x, int64_t n, const quant::TokenSlot& out) {
  quantize<Avx2>(x, n, out);
}

void multiply_avx2(const Matrix& w, const TokenView* x, quant::Tokens, int64_t n, float* y,
                   int64_t y_stride, int64_t row0, int64_t row1) {
  multiply<Avx2>(w, x, n, y, y_stride, row0, row1);
}

}  // namespace conifer::gemm
#endif
