// The steps between a recurrent layer's projections: a short convolution over tokens, the
// recurrence, and a gated norm of its result. See engine/nn/scan.py for the mathematics. All arrays
// are float32 with packed rows. Outputs must not overlap inputs.
//
// Axes: T tokens, C channels, K taps, H heads, N key width and P value width of a head's state.
#pragma once

#include <cstdint>

#include "threads/pool.h"

namespace conifer::recurrent {

using threads::Pool;

constexpr int64_t MAX_TAPS = 64;

struct Convolution {
  const float* x;     // (T, C), rows `stride` apart
  const float* tail;  // (K-1, C), the preceding tokens
  const float* taps;  // (K, C), oldest token first; K is at most MAX_TAPS
  const float* bias;  // (C), may be null
  int64_t tokens, channels, kernel, stride;
  bool activate;  // apply silu
};

// y (T, C) and the tail (K-1, C) after the last token.
void convolve(const Convolution& call, float* y, float* tail, Pool& pool);

// The tail after the first `tokens` tokens, for channels begin..end; not in place.
void copy_tail(const Convolution& call, int64_t tokens, int64_t begin, int64_t end, float* tail);

struct Recurrence {
  const float* q;          // (T, key heads, N)
  const float* k;          // same shape as q
  const float* v;          // (T, A, B, P); heads are (A, B)
  const float* log_decay;  // (T, A, B), or (T, A, B, N) if `channels`
  const float* beta;       // (T, A, B), or null if this is not a delta rule
  const float* state;      // (A, B, N, P), before the first token
  int64_t tokens, a, b, key_heads, key_step_a, key_step_b, width, values;
  float eps;      // for the delta rule's normalisation
  bool channels;  // each row of the state has its own decay; only for the delta rule
};  // the key head of head (i, j) is i * key_step_a + j * key_step_b

// y (T, A, B, P) and the state after the last token.
void scan(const Recurrence& call, float* y, float* state, Pool& pool);

constexpr int64_t SCAN_COLUMNS = 64;  // state columns that a thread processes at a time

// One head of a recurrence, as input to the kernels. Strides are from token to token. Let u =
// factor * v, or factor * (v - (decay S)^T k) for the delta rule. Then S = decay S + k u^T and
// y = S^T q + skip v.
struct HeadScan {
  const float* q;  // (N,), already normalised for the delta rule
  const float* k;
  const float* v;       // (P,)
  const float* decay;   // one, or one for each row of the state
  const float* factor;  // one; null: 1
  const float* state;   // (N, P), before the first token; may be `end`
  float* y;             // (P,)
  float* end;           // (N, P), the state after the last token
  int64_t tokens, key_stride, value_stride, y_stride, scalar_stride, decay_stride, width, values;
  float skip;
  bool delta, channels;  // channels: one decay for each row; only for the delta rule
};

// x = x / sqrt(|x|^2 + eps) * factor, for `heads` runs of n values.
void to_length(float* x, int64_t heads, int64_t n, float eps, float factor);

struct GatedNorm {
  const float* y;                       // (T, M, n)
  const float* gate;                    // (T, M, n)
  const float* weight;                  // (M or 1, n)
  int64_t tokens, rows, weights, size;  // T, M, M or 1, n
  float eps;
  bool gate_first;
};

void gated_norm(const GatedNorm& call, float* out, Pool& pool);

// Process one row. out may be y.
void gated_norm_row(const float* y, const float* gate, const float* weight, int64_t n, float eps,
                    bool gate_first, float* out);

}  // namespace conifer::recurrent
