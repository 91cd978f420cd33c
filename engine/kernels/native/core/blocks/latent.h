// Attention for many query heads over one row per token. The row is the key and begins with the
// value. This is multi-head latent attention after each head's own projections are multiplied in.
//
// Axes: T new tokens, H query heads, d key width, dv value width, L tokens in total.
#pragma once

#include <atomic>

#include "blocks/block.h"

namespace conifer::blocks {

// rows (L, d): all of one type; the last T belong to the new tokens. Row i of the scaled q (T, H,
// d) attends to all rows except the last T - 1 - i. Writes out (T, H, dv).
struct LatentCall {
  attention::CacheType type;
  const void* rows;
  const uint16_t* scales;  // (L, d / group), null unless Q8
  int64_t key_dim, value_dim, length;
  const float* queries;
  int64_t tokens, heads;
  float* out;
  bool decodes;  // the only token is decoded, not part of a prompt
};

void latent_attention(const LatentCall& call, Workspace& work, Pool& pool);

// The same in two steps: first outside a region, then on every thread inside one. `next` starts at
// 0. The results are complete after the next barrier.
void prepare_latent(const LatentCall& call, Workspace& work, int threads);
void attend_latent(const LatentCall& call, Workspace& work, Pool& pool, std::atomic<int64_t>& next,
                   int thread, int threads);

}  // namespace conifer::blocks
