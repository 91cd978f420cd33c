// Chooses the table of float32 kernels, and puts the plain functions in front of it.
#include "isa/float_kernels.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "isa/amx.h"
#include "attention/attention_amx.h"
#include "gemm/matmul.h"
#include "blocks/norm_rope.h"
#include "quant/types.h"

namespace conifer {

const FloatKernels& float_kernels() {
#if defined(__x86_64__)
  if (isa() == Isa::Avx512) return FLOAT_AVX512;
  if (isa() == Isa::Avx2) return FLOAT_AVX2;
#endif
  return FLOAT_PORTABLE;
}

void activate(Activation activation, const float* gate, const float* up, int64_t n, float* y) {
  const FloatKernels& kernels = float_kernels();
  (activation == Activation::Clamped ? kernels.clamped_multiply : kernels.silu_multiply)(gate, up,
                                                                                        n, y);
}

void rms_norm(const float* x, const Norm& norm, int64_t n, float* y) {
  float_kernels().rms_norm(x, norm.weight, norm.eps, n, y);
}

void rotate(float* x, const float* cosines, const float* sines, int64_t dims, bool interleaved) {
  float_kernels().rotate(x, cosines, sines, dims, interleaved);
}

bool Rotations::holds(const Rope& rope, int64_t offset, int64_t tokens) const {
  return offset == offset_ && tokens <= tokens_ && rope.dims / 2 == pairs_ &&
         rope.magnitude == magnitude_ &&
         std::equal(periods_.begin(), periods_.end(), rope.periods);
}

void Rotations::prepare(const Rope& rope, int64_t offset, int64_t tokens) {
  if (holds(rope, offset, tokens)) return;
  pairs_ = rope.dims / 2;
  offset_ = offset;
  tokens_ = tokens;
  magnitude_ = rope.magnitude;
  periods_.assign(rope.periods, rope.periods + pairs_);
  table_.resize(size_t(2 * tokens * pairs_));
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = 0; i < pairs_; ++i) {
      const double angle = double(offset + t) / double(periods_[size_t(i)]);
      table_[size_t(2 * t * pairs_ + i)] = float(std::cos(angle)) * magnitude_;
      table_[size_t((2 * t + 1) * pairs_ + i)] = float(std::sin(angle)) * magnitude_;
    }
}

int64_t q8_group(int64_t dims) { return std::gcd(dims, int64_t(32)); }

int64_t padded(int64_t dims) { return (dims + 15) / 16 * 16; }

namespace {

int64_t bytes_per_value(CacheType type) {
  return type == CacheType::F32 ? 4 : type == CacheType::F16 ? 2 : 1;
}

const void* head_values(const KVCache& cache, const CacheBuffer& buffer, int64_t row,
                        int64_t dims) {
  return static_cast<const uint8_t*>(buffer.values) + row * dims * bytes_per_value(cache.type);
}

uint16_t* head_scales(const CacheBuffer& buffer, int64_t row, int64_t dims) {
  return buffer.scales ? buffer.scales + row * (dims / q8_group(dims)) : nullptr;
}

}  // namespace

HeadView head_view(const KVCache& cache, int64_t head, int64_t key_dim, int64_t value_dim) {
  const int64_t row = head * cache.capacity;
  return {cache.type,
          key_dim,
          value_dim,
          value_dim,
          head_values(cache, cache.keys, row, key_dim),
          head_values(cache, cache.values, row, value_dim),
          head_scales(cache.keys, row, key_dim),
          head_scales(cache.values, row, value_dim)};
}

void append(const KVCache& cache, const CacheBuffer& buffer, int64_t head, int64_t token,
            const float* x, int64_t dims) {
  const int64_t row = head * cache.capacity + token;
  float_kernels().store_head(cache.type, x, dims,
                             const_cast<void*>(head_values(cache, buffer, row, dims)),
                             head_scales(buffer, row, dims));
}

int64_t attention_scratch(int64_t key_dim, int64_t value_dim) {
  const int64_t key_width = padded(key_dim), value_width = padded(value_dim);
  constexpr int64_t BLOCK = 64;
  const int64_t one = 8 * BLOCK + 16 + (8 + BLOCK) * (key_width + value_width);
  const int64_t many = BLOCK * (2 * std::max(key_width, value_width)) + MAX_ROWS * (BLOCK + 2);
  return std::max({one, many, amx_scratch(key_dim, value_dim)});
}

void attend_one(const HeadView& head, const float* queries, int64_t group, int64_t begin,
                int64_t end, Partial partial, float* scratch) {
  if (isa() == Isa::Avx512 && amx_serves(head) && amx_granted())
    return attend_one_amx(head, queries, group, begin, end, partial, scratch);
  float_kernels().attend_one(head, queries, group, begin, end, partial, scratch);
}

void attend_many(const HeadView& head, const float* queries, int64_t rows, const Sight* sights,
                 float* out, float* scratch) {
  float_kernels().attend_many(head, queries, rows, sights, out, scratch);
}

void merge(const Partial* partials, int64_t n, int64_t group, int64_t value_dim,
           const float* sinks, float* out) {
  const FloatKernels& kernels = float_kernels();
  const int64_t stride = padded(value_dim);
  for (int64_t g = 0; g < group; ++g, out += value_dim) {
    float top = sinks ? sinks[g] : NO_SINK;
    for (int64_t i = 0; i < n; ++i) top = std::max(top, partials[i].top[g]);
    float total = sinks ? std::exp(sinks[g] - top) : 0.0f;
    for (int64_t i = 0; i < n; ++i)
      total += partials[i].total[g] * std::exp(partials[i].top[g] - top);
    for (int64_t i = 0; i < n; ++i) {
      const float* mixed = partials[i].mixed + g * stride;
      const float factor = std::exp(partials[i].top[g] - top) / total;
      if (i == 0) kernels.scale(mixed, factor, value_dim, out);
      else kernels.add_scaled(mixed, factor, value_dim, out);
    }
  }
}

}  // namespace conifer
