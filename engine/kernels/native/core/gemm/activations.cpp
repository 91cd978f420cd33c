// Where a token's parts lie in the buffer, and how the work of filling it is shared.
#include "gemm/activations.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "isa/kernels.h"
#include "gemm/gemm_amx.h"

namespace conifer {

namespace {

constexpr std::align_val_t ALIGNMENT{64};
constexpr int64_t CHUNK = 256;

}  // namespace

void Activations::Free::operator()(uint8_t* p) const { ::operator delete[](p, ALIGNMENT); }

void Activations::prepare(const float* x, int64_t tokens, int64_t cols, int64_t stride,
                          bool tiled) {
  x_ = x;
  tokens_ = tokens;
  cols_ = cols;
  stride_ = stride;
  padded_ = (cols + CHUNK - 1) / CHUNK * CHUNK;
  // int8 values, then 4 bytes for each of 7 per 32. The last 64 keep tokens off a power of two.
  token_bytes_ = padded_ + padded_ / 32 * 7 * 4 + 64;
  tiled_ = tiled;
  const int64_t needed = tiled ? whole_tiles(tokens) * cols * 2 : tokens * token_bytes_;
  if (needed <= capacity_) return;
  buffer_.reset(static_cast<uint8_t*>(::operator new[](static_cast<size_t>(needed), ALIGNMENT)));
  capacity_ = needed;
}

TokenView Activations::token(int64_t index) const {
  uint8_t* base = buffer_.get() + index * token_bytes_;
  const int64_t blocks = padded_ / 32;
  float* floats = reinterpret_cast<float*>(base + padded_);
  int32_t* ints = reinterpret_cast<int32_t*>(floats + 4 * blocks);
  return {x_ + index * stride_, reinterpret_cast<int8_t*>(base), floats, floats + blocks,
          floats + 2 * blocks, ints, ints + blocks};
}

void Activations::quantize(int thread, int threads) {
  if (tiled_) {
    const Range mine = share(whole_tiles(tokens_), thread, threads);
    for (int64_t t = mine.begin; t < mine.end; t += 16) {
      const int64_t left = tokens_ - t;
      fill_tile(x_ + t * stride_, stride_, left < 0 ? 0 : left, cols_, tile(t));
    }
    return;
  }
  const int64_t chunks = padded_ / CHUNK;  // by chunks, so that one token has work for all threads
  const int64_t end = tokens_ * chunks * (thread + 1) / threads;
  for (int64_t i = tokens_ * chunks * thread / threads; i < end; ++i) {
    const int64_t n = i % chunks * CHUNK;
    const TokenView t = token(i / chunks);
    const TokenView part = {t.x + n,         t.q + n,           t.scale + n / 32,
                            t.sum + n / 32,  t.sum16 + n / 16,  t.isum + n / 32,
                            t.isum16 + n / 16};
    const int64_t given = std::min(CHUNK, cols_ - n);
    const int64_t whole = given / 32 * 32;
    kernels().quantize(part.x, whole, part);
    if (whole == CHUNK) continue;
    float padded[CHUNK] = {};
    std::memcpy(padded, part.x + whole, static_cast<size_t>(given - whole) * sizeof(float));
    const TokenView rest = {padded,
                            part.q + whole,
                            part.scale + whole / 32,
                            part.sum + whole / 32,
                            part.sum16 + whole / 16,
                            part.isum + whole / 32,
                            part.isum16 + whole / 16};
    kernels().quantize(padded, CHUNK - whole, rest);
  }
}

}  // namespace conifer
