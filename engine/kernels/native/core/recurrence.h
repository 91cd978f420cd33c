// What a recurrent layer does between its projections: a short convolution over tokens, the
// recurrence itself, and the gated norm of what it gives. See engine/scan.py for the mathematics.
// All arrays are float32 with rows packed; the outputs overlap no input.
//
// Axes: T tokens, C channels, K taps, H heads, N key width of a head's state, P its value width.
#pragma once

#include <cstdint>

#include "pool.h"

namespace conifer {

constexpr int64_t MAX_TAPS = 64;

struct Convolution {
  const float* x;     // (T, C)
  const float* tail;  // (K-1, C), the tokens before
  const float* taps;  // (K, C), the newest token's last; K is at most MAX_TAPS
  const float* bias;  // (C), may be null
  int64_t tokens, channels, kernel;
  bool activate;  // with silu
};

// y (T, C) and the tail (K-1, C) behind the last token.
void convolve(const Convolution& call, float* y, float* tail, Pool& pool);

struct Recurrence {
  const float* q;          // (T, key heads, N)
  const float* k;          // as q
  const float* v;          // (T, A, B, P); heads are (A, B)
  const float* log_decay;  // (T, A, B)
  const float* beta;       // (T, A, B), or null where this is no delta rule
  const float* state;      // (A, B, N, P), before the first token
  int64_t tokens, a, b, key_heads, key_step_a, key_step_b, width, values;
  float eps;  // of the delta rule's lengths
};  // the key head of head (i, j) is i * key_step_a + j * key_step_b

// y (T, A, B, P) and the state behind the last token.
void scan(const Recurrence& call, float* y, float* state, Pool& pool);

// One head of a Recurrence, as the instruction sets' kernels take it; strides are from token to token.
struct HeadScan {
  const float* q;
  const float* k;
  const float* v;
  const float* log_decay;
  const float* beta;  // may be null
  const float* state;
  float* y;    // strides as v
  float* end;  // (N, P), the state behind the last token
  int64_t tokens, key_stride, value_stride, head_stride, width, values;
  float eps;
};

struct GatedNorm {
  const float* y;       // (T, M, n)
  const float* gate;    // (T, M, n)
  const float* weight;  // (M or 1, n)
  int64_t tokens, rows, weights, size;  // T, M, M or 1, n
  float eps;
  bool gate_first;
};

void gated_norm(const GatedNorm& call, float* out, Pool& pool);

}  // namespace conifer
