// The table of kernels that each instruction set fills in.
//
// Each instruction set has its own translation units, compiled with its flags. Everything in them
// has internal linkage, except the table in isa/<id>.cpp and the functions in gemm/dot_<id>.cpp.
#pragma once

#include <cstdint>

#include "attention/attention.h"
#include "isa/isa.h"
#include "quant/token.h"
#include "quant/types.h"
#include "recurrent/recurrence.h"

namespace conifer::isa {

struct KernelTable {
  // True if products and attention use AMX tiles where they serve.
  bool tiles;

  // 32 values at a time: x (n) -> q, scale, sum, sum16, isum, isum16 of a token. n % 32 == 0.
  void (*quantize)(const float* x, int64_t n, const quant::TokenSlot& out);
  // y[t * y_stride + r] for rows [row0, row1) and each of n tokens, for any type of weight.
  void (*multiply)(const quant::Matrix& w, const quant::TokenView* x, quant::Tokens kind, int64_t n,
                   float* y, int64_t y_stride, int64_t row0, int64_t row1);

  // y = x / sqrt(mean(x^2) + eps) * weight
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* y);
  // y = (x - mean) / sqrt(variance + eps) * weight + bias; bias may be null
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t n,
                     float* y);
  void (*rotate)(float* x, const float* cosines, const float* sines, int64_t dims,
                 bool interleaved);
  void (*silu_multiply)(const float* gate, const float* up, int64_t n, float* y);
  void (*clamped_multiply)(const float* gate, const float* up, int64_t n, float* y);
  void (*capped_multiply)(const float* gate, const float* up, float limit, int64_t n, float* y);
  void (*gelu_multiply)(const float* gate, const float* up, int64_t n, float* y);
  void (*sigmoid_multiply)(const float* gate, const float* x, int64_t n, float* y);
  void (*add)(const float* a, const float* b, int64_t n, float* y);       // y = a + b
  void (*add_scaled)(const float* x, float factor, int64_t n, float* y);  // y += factor x
  float (*squares)(const float* x, int64_t n);                            // sum of x^2
  void (*scale)(const float* x, float factor, int64_t n, float* y);       // y = factor x

  bool (*all_finite)(const float* x, int64_t n);
  // The largest of n numbers, or NaN if any is not finite.
  float (*peak)(const float* x, int64_t n);
  // y = e^((x - top) factor), or 0 if negligible. Returns the sum.
  float (*weigh)(const float* x, float top, float factor, int64_t n, float* y);

  // Store one token's values (d,) for one head.
  void (*store_head)(attention::CacheType type, const float* x, int64_t dims, void* values,
                     uint16_t* scales);
  void (*attend_one)(const attention::HeadView& head, const float* queries, int64_t group,
                     int64_t begin, int64_t end, attention::Partial partial, float* scratch);
  void (*attend_many)(const attention::HeadView& head, const float* queries, int64_t rows,
                      const attention::Sight* sights, float* out, float* scratch);
  void (*score_rows)(const attention::HeadView& keys, const float* queries, const float* weights,
                     int64_t group, int64_t begin, int64_t end, float* scores, float* scratch);

  // Channels begin..end of a convolution, and columns begin..end of a head's state;
  // scratch: (N, end - begin).
  void (*convolve)(const recurrent::Convolution& call, int64_t begin, int64_t end, float* y);
  void (*scan)(const recurrent::HeadScan& head, int64_t begin, int64_t end, float* scratch);
};

const KernelTable& kernels();  // for the current instruction set

#define X(Name, id, ...) extern const KernelTable KERNELS_##id;
CONIFER_ISAS(X)
#undef X

}  // namespace conifer::isa
