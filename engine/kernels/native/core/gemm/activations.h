// A product's activations. They are quantised to int8 (quant/token.h), with columns padded with
// zeros to a multiple of 256, and kernels may read the padding. For many tokens on a processor with
// AMX, they are bfloat16 in tile order (gemm_amx.h).
#pragma once

#include <cstdint>
#include <memory>

#include "quant/token.h"

namespace conifer::gemm {

// Grow-only scratch memory that the caller keeps and reuses. Call `prepare` once outside the
// parallel region (or on one thread before a barrier), then `quantize` on every thread, then a
// barrier.
class Activations {
 public:
  // Set the input: `tokens` rows of `cols` floats, `stride` floats apart. x must stay valid.
  // tiled: use tiles, for products with all of the tokens, if `tiles_serve`. x may be null if the
  // caller fills the tiles.
  void prepare(const float* x, int64_t tokens, int64_t cols, int64_t stride, bool tiled = false,
               quant::Tokens kind = quant::Tokens::Prompt);
  // Quantise this thread's share. Not needed if all weights are F32, F16 or BF16.
  void quantize(int thread, int threads);
  // Set and quantise the rows that belong to one token, such as its heads or experts.
  void load(const float* x, int64_t rows, int64_t cols, int64_t stride) {
    prepare(x, rows, cols, stride, false, quant::Tokens::Single);
    quantize(0, 1);
  }

  int64_t tokens() const { return tokens_; }
  quant::Tokens kind() const { return kind_; }
  quant::TokenView token(int64_t index) const { return slot(index).view(); }

  // The tile for 16 tokens, starting with `token`: (cols / 32, 16 pairs of columns, 16 tokens, 2),
  // or null if not tiled.
  uint16_t* tile(int64_t token) const {
    return tiled_ ? reinterpret_cast<uint16_t*>(buffer_.get()) + token * cols_ : nullptr;
  }
  // Copy a token's values before they were quantised, or those in the tiles.
  void read(int64_t token, float* out) const;

 private:
  quant::TokenSlot slot(int64_t index) const;

  struct Free {
    void operator()(uint8_t* p) const;
  };
  const float* x_ = nullptr;
  int64_t tokens_ = 0, cols_ = 0, stride_ = 0, padded_ = 0, token_bytes_ = 0;
  int64_t capacity_ = 0;
  bool tiled_ = false;
  quant::Tokens kind_ = quant::Tokens::Single;
  std::unique_ptr<uint8_t[], Free> buffer_;
};

}  // namespace conifer::gemm
