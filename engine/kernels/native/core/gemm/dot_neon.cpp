// NEON with the dot product extension.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "gemm/panels.h"

namespace conifer::gemm {
namespace {

using quant::Bytes32;

struct Neon {
  static constexpr int LANES = 4;
  static constexpr int TILE = 4;
  static constexpr int ROWS = 4;
  using Acc = float32x4_t;

  static Acc zero() { return vdupq_n_f32(0); }
  static float total(Acc acc) { return vaddvq_f32(acc); }

  static Acc load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Acc v) { vst1q_f32(p, v); }

  // ---- Weights times int8 values. See gemm/decode.h. All bytes of weights are below 128, so they
  // count as signed.

  using Ints = int32x4_t;

  template <class T>
  static constexpr int OFFSET = T::LEVELS.offset();

  template <class T>
  static CONIFER_INLINE Bytes32 encode(Bytes32 w) {
    return w;
  }

  template <class T>
  static CONIFER_INLINE float32x4_t minima(const Scales& s, int at) {
    if constexpr (T::MINS) return vld1q_f32(s.min + at);
    return vmulq_n_f32(vld1q_f32(s.scale + at), -OFFSET<T>);
  }

  template <class T>
  static CONIFER_INLINE Acc weigh(Scales& s, const TokenView& x, int64_t n, Acc acc) {
    const float* sums = T::GROUP == 16 ? x.sum16 + n / 16 : x.sum + n / 32;
#pragma GCC unroll 4
    for (int at = 0; at < 256 / T::GROUP; at += 4) {
      if constexpr (T::MINS || OFFSET<T> != 0)
        acc = vfmaq_f32(acc, minima<T>(s, at), vld1q_f32(sums + at));
      const float* given = x.scale + n / 32;
      float32x4_t scale;
      if constexpr (T::GROUP == 32) {
        scale = vld1q_f32(given + at);
      } else {
        const float32x2_t two = vld1_f32(given + at / 2);
        scale = vcombine_f32(vdup_lane_f32(two, 0), vdup_lane_f32(two, 1));
      }
      vst1q_f32(s.scale + at, vmulq_f32(vld1q_f32(s.scale + at), scale));
    }
    return acc;
  }

  static CONIFER_INLINE int8x16x2_t load_values(const int8_t* q) {
    return {{vld1q_s8(q), vld1q_s8(q + 16)}};
  }

  template <class T>
  static CONIFER_INLINE Acc dot(Acc acc, Bytes32 w, int8x16x2_t x, const float* scales) {
    const int32x4_t none = vdupq_n_s32(0);
    const int32x4_t first = vdotq_s32(none, (int8x16_t)w.low, x.val[0]);
    if constexpr (T::GROUP == 32) {
      const int32x4_t both = vdotq_s32(first, (int8x16_t)w.high, x.val[1]);
      return vfmaq_n_f32(acc, vcvtq_f32_s32(both), scales[0]);
    }
    const int32x4_t second = vdotq_s32(none, (int8x16_t)w.high, x.val[1]);
    acc = vfmaq_n_f32(acc, vcvtq_f32_s32(first), scales[0]);
    return vfmaq_n_f32(acc, vcvtq_f32_s32(second), scales[1]);
  }

  // ---- Panels. See gemm/panels.h.

  template <class Row>
  static CONIFER_INLINE void put_columns(const Row* const (&rows)[8], void* out, size_t stride) {
    for (int row = 0; row < 8; row += 4)
      for (int column = 0; column < 8; column += 4) {
        const auto four = [&](int i) {
          return vld1q_f32(reinterpret_cast<const float*>(rows[row + i]) + column);
        };
        const float32x4x2_t a = vtrnq_f32(four(0), four(1)), b = vtrnq_f32(four(2), four(3));
        const auto put = [&](int i, float32x2_t first, float32x2_t second) {
          uint8_t* to = static_cast<uint8_t*>(out) + static_cast<size_t>(column + i) * stride;
          vst1q_f32(reinterpret_cast<float*>(to) + row, vcombine_f32(first, second));
        };
        for (int i = 0; i < 2; ++i) {
          put(i, vget_low_f32(a.val[i]), vget_low_f32(b.val[i]));
          put(i + 2, vget_high_f32(a.val[i]), vget_high_f32(b.val[i]));
        }
      }
  }

  template <class T, int TOKENS>
  static CONIFER_INLINE void dots(const uint8_t* panel, const int8_t* const (&q)[TOKENS], int at,
                                  const int32_t (&first)[TOKENS], Ints (&out)[TOKENS][4]) {
    constexpr int STRIDE = 128;  // bytes of four columns
#pragma GCC unroll 8
    for (int k = 0; k < T::GROUP / 4; ++k) {
      int8x16_t w[4];
      for (int v = 0; v < 4; ++v) w[v] = vreinterpretq_s8_u8(vld1q_u8(panel + k * STRIDE + 16 * v));
#pragma GCC unroll 4
      for (int t = 0; t < TOKENS; ++t) {
        const int32_t values = quant::read_integer<int32_t>(q[t] + at + 4 * k);
        const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(values));
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v)
          out[t][v] = vdotq_s32(k ? out[t][v] : vdupq_n_s32(first[t]), w[v], x);
      }
    }
  }

  static CONIFER_INLINE Acc add_scaled(Acc acc, Ints dot, const float* scales, float scale) {
    return vfmaq_n_f32(acc, vmulq_f32(vcvtq_f32_s32(dot), vld1q_f32(scales)), scale);
  }

  static CONIFER_INLINE Acc add_product(Acc acc, const float* w, float x) {
    return vfmaq_n_f32(acc, vld1q_f32(w), x);
  }

  // ---- Floats, and the quantiser. See gemm/rowwise.h.

  static Acc fma(Acc acc, float32x4_t w, const float* x) { return vfmaq_f32(acc, w, vld1q_f32(x)); }
  static float32x4_t load_f32(const uint8_t* w) { return vreinterpretq_f32_u8(vld1q_u8(w)); }
  static float32x4_t load_f16(const uint8_t* w) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(w)));
  }
  static float32x4_t load_bf16(const uint8_t* w) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(w)), 16));
  }

  static int32_t sum16(const int8_t* q) { return vaddlvq_s8(vld1q_s8(q)); }

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

void multiply_neon(const Matrix& w, const TokenView* x, quant::Tokens kind, int64_t n, float* y,
                   int64_t y_stride, int64_t row0, int64_t row1) {
  multiply_in_registers<Neon>(w, x, kind, n, y, y_stride, row0, row1);
}

}  // namespace conifer::gemm
#endif
