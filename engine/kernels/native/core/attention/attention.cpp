// The attention functions, which call the kernels for the current instruction set.
#include "attention/attention.h"

#include <algorithm>
#include <cmath>

#include "attention/attention_amx.h"
#include "isa/kernels.h"

namespace conifer::attention {

namespace {

int64_t bytes_per_value(CacheType type) {
  return type == CacheType::F32 ? 4 : type == CacheType::F16 ? 2 : 1;
}

void* head_values(const KVCache& cache, const CacheBuffer& buffer, int64_t row, int64_t dims) {
  return static_cast<uint8_t*>(buffer.values) + row * dims * bytes_per_value(cache.type);
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
          head_scales(cache.values, row, value_dim),
          cache.base};
}

void append(const KVCache& cache, const CacheBuffer& buffer, int64_t head, int64_t token,
            const float* x, int64_t dims) {
  const int64_t row = head * cache.capacity + token;
  isa::kernels().store_head(cache.type, x, dims, head_values(cache, buffer, row, dims),
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
  if (isa::kernels().tiles && !head.score_cap && amx_serves(head))
    return attend_one_amx(head, queries, group, begin, end, partial, scratch);
  isa::kernels().attend_one(head, queries, group, begin, end, partial, scratch);
}

void attend_many(const HeadView& head, const float* queries, int64_t rows, const Sight* sights,
                 float* out, float* scratch) {
  isa::kernels().attend_many(head, queries, rows, sights, out, scratch);
}

int64_t score_scratch(int64_t dims, int64_t heads) {
  constexpr int64_t BLOCK = 64;
  return BLOCK * (2 * padded(dims) + (heads + 3) / 4 * 4 + 1);
}

void score_rows(const HeadView& keys, const float* queries, const float* weights, int64_t group,
                int64_t begin, int64_t end, float* scores, float* scratch) {
  isa::kernels().score_rows(keys, queries, weights, group, begin, end, scores, scratch);
}

void merge(const Partial* partials, int64_t n, int64_t group, int64_t value_dim, const float* sinks,
           float* out) {
  const isa::KernelTable& kernels = isa::kernels();
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

}  // namespace conifer::attention
