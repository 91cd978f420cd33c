// The kernels in plain C++, for any CPU.
#include <numeric>

#include "gemm/rowwise.h"

namespace conifer::gemm {
namespace {

struct Portable {
  static constexpr int LANES = 8;
  struct Acc {
    float lane[LANES];
  };

  static Acc zero() { return {}; }

  static float total(const Acc& acc) {
    float sum = 0;
    for (float lane : acc.lane) sum += lane;
    return sum;
  }

  template <class T>
  static Acc dot(Acc acc, const Unpacked& w, const TokenView& x, int64_t n) {
    constexpr int GROUP = T::GROUP;
    const float* sums = GROUP == 16 ? x.sum16 + n / 16 : x.sum + n / 32;
    for (int g = 0; g < 256 / GROUP; ++g) {
      int32_t dot = 0;
      for (int i = 0; i < GROUP; ++i) dot += w.q[g * GROUP + i] * x.q[n + g * GROUP + i];
      const int i = g * GROUP / 16;
      const float scale = w.scale[i] * x.scale[n / 32 + i / 2];
      acc.lane[g % LANES] += scale * static_cast<float>(dot);
      if constexpr (T::MINS) acc.lane[g % LANES] += w.min[i] * sums[g];
    }
    return acc;
  }

  static Acc fma(Acc acc, const Acc& w, const float* x) {
    for (int i = 0; i < LANES; ++i) acc.lane[i] += w.lane[i] * x[i];
    return acc;
  }

  template <class T>
  static Acc load(const uint8_t* w) {
    Acc out;
    for (int i = 0; i < LANES; ++i) out.lane[i] = T::read(w + i * T::BYTES);
    return out;
  }
  static Acc load_f32(const uint8_t* w) { return load<quant::F32>(w); }
  static Acc load_f16(const uint8_t* w) { return load<quant::F16>(w); }
  static Acc load_bf16(const uint8_t* w) { return load<quant::BF16>(w); }

  static int32_t sum16(const int8_t* q) { return std::accumulate(q, q + 16, 0); }

  static float quantize(const float* x, int8_t* q) {
    float largest = 0;
    for (int i = 0; i < 32; ++i) {
      if (std::isnan(x[i])) largest = NAN;
      if (std::fabs(x[i]) > largest) largest = std::fabs(x[i]);  // never true once `largest` is NaN
    }
    const float inverse = counts(largest) ? 127.0f / largest : 0.0f;
    for (int i = 0; i < 32; ++i)
      q[i] = inverse > 0 ? static_cast<int8_t>(std::lrintf(x[i] * inverse)) : int8_t{0};
    return largest / 127.0f;
  }
};

}  // namespace

void quantize_portable(const float* x, int64_t n, const quant::TokenSlot& out) {
  quantize<Portable>(x, n, out);
}

void multiply_portable(const Matrix& w, const TokenView* x, quant::Tokens, int64_t n, float* y,
                       int64_t y_stride, int64_t row0, int64_t row1) {
  multiply<Portable>(w, x, n, y, y_stride, row0, row1);
}

}  // namespace conifer::gemm
