// Activations for the quantised dot products: int8 with a float scale for every 32 values.
//
// Also kept are the sums of the int8 values, so that a minimum or a zero point costs one
// multiply-add per block instead of one per weight. Columns are padded with zeros to a multiple
// of 256; kernels may read (not use) up to there.
//
// Or, for many tokens where the processor has tiles, bfloat16 as these want it (gemm_amx.h).
#pragma once

#include <cstdint>
#include <memory>

namespace conifer {

// One token, as the kernels see it. n counts from the start of the padded row.
struct TokenView {
  const float* x;        // the floats it was made from, not padded
  const int8_t* q;       // [n] within -127..127
  const float* scale;    // [n / 32]
  const float* sum;      // [n / 32] scale * sum of q
  const float* sum16;    // [n / 16] scale * sum of q, by 16 values
  const int32_t* isum;   // [n / 32] sum of q
  const int32_t* isum16; // [n / 16]
};

// Scratch that the caller keeps and reuses; it only grows. One `prepare` outside the parallel
// region (or by one thread, before a barrier), then every thread its `quantize`, then a barrier.
class Activations {
 public:
  // Remember `tokens` rows of `cols` floats, `stride` floats apart; x must outlive the use.
  // tiled: for products with all of the tokens, if `tiles_serve`; x may be null where something
  // else fills the tiles.
  void prepare(const float* x, int64_t tokens, int64_t cols, int64_t stride, bool tiled = false);
  // Quantise this thread's share. Not needed if only F32, F16 and BF16 weights will be used.
  void quantize(int thread, int threads);
  void load(const float* x, int64_t tokens, int64_t cols, int64_t stride) {
    prepare(x, tokens, cols, stride);
    quantize(0, 1);
  }

  int64_t tokens() const { return tokens_; }
  TokenView token(int64_t index) const;

  // The tile of 16 tokens from `token` on, (cols / 32, 16 pairs of columns, 16 tokens, 2); null
  // unless tiled.
  uint16_t* tile(int64_t token) const {
    return tiled_ ? reinterpret_cast<uint16_t*>(buffer_.get()) + token * cols_ : nullptr;
  }

 private:
  struct Free {
    void operator()(uint8_t* p) const;
  };
  const float* x_ = nullptr;
  int64_t tokens_ = 0, cols_ = 0, stride_ = 0, padded_ = 0, token_bytes_ = 0;
  int64_t capacity_ = 0;
  bool tiled_ = false;
  std::unique_ptr<uint8_t[], Free> buffer_;
};

}  // namespace conifer
