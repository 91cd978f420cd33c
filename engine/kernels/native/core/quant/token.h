// One token's activations, quantised to int8 with a float scale for every 32 values, for products
// with quantised weights. Sums of the int8 values are also stored, so that a minimum or a zero
// point needs one multiply-add per block instead of one per weight.
#pragma once

#include <cstdint>

namespace conifer::quant {

// The kind of tokens in a product, which selects the kernel. Kernels round differently, so except
// for Block, a token's result must not depend on the number of tokens. A prompt then has the same
// logits however much of it was cached.
enum class Tokens {
  Single,  // a decoded token
  Prompt,  // tokens of a prompt, any number
  Routed,  // a prompt's tokens for one expert, often few
  Block,   // the same in a whole block of BLOCK_TOKENS: their number selects the kernel
};
constexpr int64_t BLOCK_TOKENS = 512;  // same as MAX_CHUNK in engine/limits.py

// A token, as read by the kernels. n counts from the start of the padded row.
struct TokenView {
  const float* x;         // the source floats, not padded
  const int8_t* q;        // [n] in -127..127
  const float* scale;     // [n / 32]
  const float* sum;       // [n / 32] scale * sum of q
  const float* sum16;     // [n / 16] scale * sum of q, per 16 values
  const int32_t* isum;    // [n / 32] sum of q
  const int32_t* isum16;  // [n / 16]
};

// The same memory, as written by the quantiser.
struct TokenSlot {
  const float* x;
  int8_t* q;
  float* scale;
  float* sum;
  float* sum16;
  int32_t* isum;
  int32_t* isum16;

  TokenView view() const { return {x, q, scale, sum, sum16, isum, isum16}; }

  // The slot that starts at value n, a multiple of 32.
  TokenSlot from(int64_t n) const {
    return {x + n,          q + n,         scale + n / 32, sum + n / 32,
            sum16 + n / 16, isum + n / 32, isum16 + n / 16};
  }
};

}  // namespace conifer::quant
