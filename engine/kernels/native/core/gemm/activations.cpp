// The buffer layout for a token, and how threads divide the work of filling it.
#include "gemm/activations.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "gemm/gemm_amx.h"
#include "isa/kernels.h"
#include "quant/half.h"
#include "threads/share.h"

namespace conifer::gemm {

namespace {

constexpr std::align_val_t ALIGNMENT{64};
constexpr int64_t CHUNK = 256;

}  // namespace

void Activations::Free::operator()(uint8_t* p) const { ::operator delete[](p, ALIGNMENT); }

void Activations::prepare(const float* x, int64_t tokens, int64_t cols, int64_t stride, bool tiled,
                          quant::Tokens kind) {
  x_ = x;
  tokens_ = tokens;
  cols_ = cols;
  stride_ = stride;
  padded_ = (cols + CHUNK - 1) / CHUNK * CHUNK;
  // int8 values, then seven 4-byte numbers per 32 values. The extra 64 bytes avoid a power-of-two
  // stride.
  token_bytes_ = padded_ + padded_ / 32 * 7 * 4 + 64;
  tiled_ = tiled;
  kind_ = kind;
  const int64_t needed = tiled ? whole_tiles(tokens) * cols * 2 : tokens * token_bytes_;
  if (needed <= capacity_) return;
  buffer_.reset(static_cast<uint8_t*>(::operator new[](static_cast<size_t>(needed), ALIGNMENT)));
  capacity_ = needed;
}

quant::TokenSlot Activations::slot(int64_t index) const {
  uint8_t* base = buffer_.get() + index * token_bytes_;
  const int64_t blocks = padded_ / 32;
  float* floats = reinterpret_cast<float*>(base + padded_);
  int32_t* ints = reinterpret_cast<int32_t*>(floats + 4 * blocks);
  return {x_ + index * stride_,
          reinterpret_cast<int8_t*>(base),
          floats,
          floats + blocks,
          floats + 2 * blocks,
          ints,
          ints + blocks};
}

void Activations::quantize(int thread, int count) {
  if (tiled_) {
    const threads::Range mine = threads::share(whole_tiles(tokens_), thread, count);
    for (int64_t t = mine.begin; t < mine.end; t += 16) {
      const int64_t left = tokens_ - t;
      fill_tile(x_ + t * stride_, stride_, left < 0 ? 0 : left, cols_, tile(t));
    }
    return;
  }
  const int64_t chunks = padded_ / CHUNK;  // by chunk, so that one token has work for all threads
  const int64_t end = tokens_ * chunks * (thread + 1) / count;
  for (int64_t i = tokens_ * chunks * thread / count; i < end; ++i) {
    const int64_t n = i % chunks * CHUNK;
    const quant::TokenSlot part = slot(i / chunks).from(n);
    const int64_t given = std::min(CHUNK, cols_ - n);
    const int64_t whole = given / 32 * 32;
    isa::kernels().quantize(part.x, whole, part);
    if (whole == CHUNK) continue;
    float padded[CHUNK] = {};
    std::memcpy(padded, part.x + whole, static_cast<size_t>(given - whole) * sizeof(float));
    isa::kernels().quantize(padded, CHUNK - whole, part.from(whole));
  }
}

void Activations::read(int64_t token, float* out) const {
  if (!tiled_) return static_cast<void>(std::copy_n(x_ + token * stride_, cols_, out));
  const uint16_t* pairs = tile(token / 16 * 16) + 2 * (token % 16);
  for (int64_t n = 0; n < cols_; ++n) out[n] = quant::bf16_to_float(pairs[n / 2 * 32 + n % 2]);
}

}  // namespace conifer::gemm
