// NEON with the dot product extension, row by row.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "gemm/rowwise.h"

namespace conifer::gemm {
namespace {

struct Neon {
  static constexpr int LANES = 4;
  using Acc = float32x4_t;

  static Acc zero() { return vdupq_n_f32(0); }
  static float total(Acc acc) { return vaddvq_f32(acc); }

  template <class T>
  static Acc dot(Acc acc, const Unpacked& w, const TokenView& x, int64_t n) {
    const float* scales = x.scale + n / 32;
    const int8_t* q = x.q + n;
    Acc other = zero();  // two sums, so that additions overlap
    for (int i = 0; i < 8; ++i) {
      const int32x4_t none = vdupq_n_s32(0);
      const int32x4_t first = vdotq_s32(none, vld1q_s8(w.q + 32 * i), vld1q_s8(q + 32 * i));
      const int8x16_t w1 = vld1q_s8(w.q + 32 * i + 16), x1 = vld1q_s8(q + 32 * i + 16);
      if constexpr (T::GROUP == 32) {
        Acc& sum = i % 2 ? other : acc;
        sum = vfmaq_n_f32(sum, vcvtq_f32_s32(vdotq_s32(first, w1, x1)), w.scale[2 * i] * scales[i]);
      } else {
        const int32x4_t second = vdotq_s32(none, w1, x1);
        acc = vfmaq_n_f32(acc, vcvtq_f32_s32(first), w.scale[2 * i] * scales[i]);
        other = vfmaq_n_f32(other, vcvtq_f32_s32(second), w.scale[2 * i + 1] * scales[i]);
      }
    }
    if constexpr (T::MINS)
      for (int i = 0; i < 16; i += 4)
        acc = vfmaq_f32(acc, vld1q_f32(w.min + i), vld1q_f32(x.sum16 + n / 16 + i));
    return vaddq_f32(acc, other);
  }

  static Acc fma(Acc acc, float32x4_t w, const float* x) { return vfmaq_f32(acc, w, vld1q_f32(x)); }
  static float32x4_t load_f32(const uint8_t* w) { return vreinterpretq_f32_u8(vld1q_u8(w)); }
  static float32x4_t load_f16(const uint8_t* w) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(w)));
  }
  static float32x4_t load_bf16(const uint8_t* w) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(w)), 16));
  }

  static float quantize(const float* x, int8_t* q) {
    float32x4_t v[8], top = zero();
    for (int i = 0; i < 8; ++i) {
      v[i] = vld1q_f32(x + 4 * i);
      top = vmaxq_f32(top, vabsq_f32(v[i]));
    }
    const float largest = vmaxvq_f32(top);
    const float inverse = counts(largest) ? 127.0f / largest : 0.0f;  // 0 * NaN rounds to 0
    for (int i = 0; i < 8; i += 2) {
      const int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(v[i], inverse));
      const int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(v[i + 1], inverse));
      vst1_s8(q + 4 * i, vqmovn_s16(vcombine_s16(vqmovn_s32(a), vqmovn_s32(b))));
    }
    return largest / 127.0f;
  }
};

}  // namespace

void quantize_neon(const float* x, int64_t n, const quant::TokenSlot& out) {
  quantize<Neon>(x, n, out);
}

void multiply_neon(const Matrix& w, const TokenView* x, quant::Tokens, int64_t n, float* y,
                   int64_t y_stride, int64_t row0, int64_t row1) {
  multiply<Neon>(w, x, n, y, y_stride, row0, row1);
}

}  // namespace conifer::gemm
#endif
