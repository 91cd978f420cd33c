// The float32 loops that are compiled once per instruction set, and the table to call them by.
#pragma once

#include <cstdint>

#include "attention/attention.h"
#include "recurrent/recurrence.h"
#include "quant/types.h"

namespace conifer {

struct FloatKernels {
  // y = x / sqrt(mean(x^2) + eps) * weight
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* y);
  void (*rotate)(float* x, const float* cosines, const float* sines, int64_t dims,
                 bool interleaved);
  void (*silu_multiply)(const float* gate, const float* up, int64_t n, float* y);
  void (*clamped_multiply)(const float* gate, const float* up, int64_t n, float* y);
  void (*sigmoid_multiply)(const float* gate, const float* x, int64_t n, float* y);
  void (*add)(const float* a, const float* b, int64_t n, float* y);            // y = a + b
  void (*add_scaled)(const float* x, float factor, int64_t n, float* y);       // y += factor x
  float (*squares)(const float* x, int64_t n);                                 // sum of x^2
  void (*scale)(const float* x, float factor, int64_t n, float* y);            // y = factor x

  // The largest of n numbers; NaN where one is not finite.
  float (*peak)(const float* x, int64_t n);
  // y = e^((x - top) factor), 0 where that is as good as nothing; gives back the sum.
  float (*weigh)(const float* x, float top, float factor, int64_t n, float* y);

  // Store one head's values (d,) of one token.
  void (*store_head)(CacheType type, const float* x, int64_t dims, void* values,
                     uint16_t* scales);
  void (*attend_one)(const HeadView& head, const float* queries, int64_t group, int64_t begin,
                     int64_t end, Partial partial, float* scratch);
  void (*attend_many)(const HeadView& head, const float* queries, int64_t rows,
                      const Sight* sights, float* out, float* scratch);

  // The channels begin..end of a convolution, and the columns begin..end of a head's state;
  // scratch: (N, end - begin).
  void (*convolve)(const Convolution& call, int64_t begin, int64_t end, float* y);
  void (*scan)(const HeadScan& head, int64_t begin, int64_t end, float* scratch);
};

// The best table for this processor.
const FloatKernels& float_kernels();

// y = activation(gate, up), of n values; y may be gate.
void activate(Activation activation, const float* gate, const float* up, int64_t n, float* y);

extern const FloatKernels FLOAT_PORTABLE;
#if defined(__x86_64__)
extern const FloatKernels FLOAT_AVX2;
extern const FloatKernels FLOAT_AVX512;
#endif

}  // namespace conifer
