// The list of GGML tensor types, and everything generated from it.
//
// A tensor row is a sequence of blocks. A block has a few scales and packed weights. Low bits come
// first: in a group of bytes, the low nibbles precede the high nibbles. Kernels read blocks in
// place from the file, so nothing may assume alignment.
#pragma once

#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/f32.h"
#include "quant/iq1_m.h"
#include "quant/iq1_s.h"
#include "quant/iq2_s.h"
#include "quant/iq2_xs.h"
#include "quant/iq2_xxs.h"
#include "quant/iq3_s.h"
#include "quant/iq3_xxs.h"
#include "quant/iq4_nl.h"
#include "quant/iq4_xs.h"
#include "quant/mxfp4.h"
#include "quant/nvfp4.h"
#include "quant/q1_0.h"
#include "quant/q2_0.h"
#include "quant/q2_k.h"
#include "quant/q3_k.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q4_k.h"
#include "quant/q5_0.h"
#include "quant/q5_1.h"
#include "quant/q5_k.h"
#include "quant/q6_k.h"
#include "quant/q8_0.h"
#include "quant/tq1_0.h"
#include "quant/tq2_0.h"

// Every type the engine reads, by the name of its traits struct.
#define CONIFER_BLOCK_TYPES(X) \
  X(F32)                       \
  X(F16)                       \
  X(BF16)                      \
  X(Q4_0)                      \
  X(Q4_1)                      \
  X(Q5_0)                      \
  X(Q5_1)                      \
  X(Q8_0)                      \
  X(Q2_K)                      \
  X(Q3_K)                      \
  X(Q4_K)                      \
  X(Q5_K)                      \
  X(Q6_K)                      \
  X(IQ4_NL)                    \
  X(IQ4_XS)                    \
  X(MXFP4)                     \
  X(IQ1_S)                     \
  X(IQ1_M)                     \
  X(IQ2_XXS)                   \
  X(IQ2_XS)                    \
  X(IQ2_S)                     \
  X(IQ3_XXS)                   \
  X(IQ3_S)                     \
  X(TQ1_0)                     \
  X(TQ2_0)                     \
  X(NVFP4)                     \
  X(Q1_0)                      \
  X(Q2_0)

namespace conifer::quant {

enum class Type : int32_t {
#define X(T) T = quant::T::ID,
  CONIFER_BLOCK_TYPES(X)
#undef X
};

struct BlockType {
  Type type;
  const char* name;
  int64_t weights, bytes;  // per block
};

static constexpr BlockType BLOCK_TYPES[] = {
#define X(T) {Type::T, #T, T::WEIGHTS, T::BYTES},
    CONIFER_BLOCK_TYPES(X)
#undef X
};

static constexpr int64_t block_weights(Type type) {
  switch (type) {
#define X(T) \
  case Type::T: return T::WEIGHTS;
    CONIFER_BLOCK_TYPES(X)
#undef X
  }
  return 0;
}

static constexpr int64_t block_bytes(Type type) {
  switch (type) {
#define X(T) \
  case Type::T: return T::BYTES;
    CONIFER_BLOCK_TYPES(X)
#undef X
  }
  return 0;
}

static constexpr bool is_float(Type type) {
  switch (type) {
#define X(T) \
  case Type::T: return !T::QUANTIZED;
    CONIFER_BLOCK_TYPES(X)
#undef X
  }
  return false;
}

static constexpr bool fits_tiles(Type type) {
  switch (type) {
#define X(T) \
  case Type::T: return T::TILES;
    CONIFER_BLOCK_TYPES(X)
#undef X
  }
  return false;
}

static constexpr int64_t row_bytes(Type type, int64_t cols) {
  return cols / block_weights(type) * block_bytes(type);
}

// Weights for `rows` output features, each a sequence of blocks over `cols` input features. An
// expert stack has one Matrix per expert.
struct Matrix {
  const uint8_t* data;
  Type type;
  int64_t rows, cols;
  const float* scale = nullptr;  // a factor for every product, as NVFP4 files have

  int64_t stride() const { return row_bytes(type, cols); }
};

namespace {

// Call f with the traits of a quantised type. Does nothing for float types.
template <class Call>
inline void with_quantized(Type type, Call&& f) {
  switch (type) {
#define X(T)                                   \
  case Type::T:                                \
    if constexpr (T::QUANTIZED) return f(T{}); \
    return;
    CONIFER_BLOCK_TYPES(X)
#undef X
  }
}

// Call f with the traits of a float type. Does nothing for quantised types.
template <class Call>
inline void with_float(Type type, Call&& f) {
  switch (type) {
#define X(T)                                    \
  case Type::T:                                 \
    if constexpr (!T::QUANTIZED) return f(T{}); \
    return;
    CONIFER_BLOCK_TYPES(X)
#undef X
  }
}

}  // namespace
}  // namespace conifer::quant
