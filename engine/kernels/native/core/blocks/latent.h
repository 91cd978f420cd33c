// Attention of many query heads over one row per token: its key, which begins with its value. This
// is multi-head latent attention after the heads' own projections have been multiplied in.
//
// Axes: T new tokens, H query heads, d key width, dv value width, L tokens in all.
#pragma once

#include <atomic>

#include "blocks/block.h"

namespace conifer::blocks {

// rows (L, d) in one type, the last T of them the new tokens' own; row i of q, (T, H, d), already
// scaled, attends to all but the T - 1 - i last. Writes out (T, H, dv).
struct LatentCall {
  attention::CacheType type;
  const void* rows;
  const uint16_t* scales;  // (L, d / group), null unless Q8
  int64_t key_dim, value_dim, length;
  const float* queries;
  int64_t tokens, heads;
  float* out;
};

void latent_attention(const LatentCall& call, Workspace& work, Pool& pool);

// The same in two steps: outside a region, then on every thread inside one. `next` starts at 0. The
// results are complete after the next barrier.
void prepare_latent(const LatentCall& call, Workspace& work, int threads);
void attend_latent(const LatentCall& call, Workspace& work, Pool& pool, std::atomic<int64_t>& next,
                   int thread, int threads);

}  // namespace conifer::blocks
