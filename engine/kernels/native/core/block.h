// Whole layers of a decoder, each one parallel region: attention, dense feed-forward, mixture of
// experts, output head. The structs are plain views: the caller keeps what they point to alive.
// Pointers that may be null say so. x and y are (T, D) float32, rows packed; y may be x.
//
// Axes: T tokens, D width, H query heads, K kv heads, d head width, E experts, k chosen, F hidden.
#pragma once

#include <cstdint>
#include <memory>

#include "attention.h"
#include "matmul.h"
#include "norm_rope.h"
#include "pool.h"
#include "types.h"

namespace conifer {

// Scratch memory of the blocks: grows to the largest call and is kept. One call at a time.
struct Workspace {
  Workspace();
  ~Workspace();
  void release();  // give everything back
  struct Parts;
  std::unique_ptr<Parts> parts;
};

struct AttentionLayer {
  Norm norm;                    // of x
  Matrix q, k, v, output;       // (H d, D), (K d, D), (K dv, D), (D, H dv)
  const float* q_bias;          // these four may be null
  const float* k_bias;
  const float* v_bias;
  const float* output_bias;
  Norm q_norm, k_norm;          // over each head; weight null: none
  Rope rope;
  int64_t heads, kv_heads, key_dim, value_dim;  // heads / kv_heads: whole, at most MAX_ROWS
  float scale;                  // of the scores
};

// y = x + output(attention(rope(norm(q)), cache)). Appends T tokens to the cache at `offset`, whose
// buffers must have room for offset + T; cache null: the tokens see only each other (offset is
// then still where the rotation starts).
void attention_block(const AttentionLayer& layer, const KVCache* cache, int64_t offset,
                     const float* x, int64_t tokens, float* y, Workspace& work, Pool& pool);

struct DenseLayer {
  Norm norm;
  Matrix gate, up, down;  // (F, D), (F, D), (D, F)
};

// y = x + down(silu(gate(h)) * up(h)), h = norm(x).
void dense_block(const DenseLayer& layer, const float* x, int64_t tokens, float* y,
                 Workspace& work, Pool& pool);

struct Routing {
  int64_t experts, used;
  bool renormalize;  // divide the chosen weights by max(their sum, 6.103515625e-05)
  float scale;       // then multiply by this
};

struct ExpertLayer {
  Norm norm;
  Matrix router;          // (E, D)
  Matrix gate, up, down;  // of one expert, `data` at the first; the others follow without a gap
  Routing routing;
};

// y = x + sum over the chosen of weight * down(silu(gate(h)) * up(h)), h = norm(x).
// chosen: takes the ids of the chosen experts (T, k), unless null.
void moe_block(const ExpertLayer& layer, const float* x, int64_t tokens, float* y,
               Workspace& work, Pool& pool, int32_t* chosen = nullptr);

// Choose `used` experts by softmax of `logits` (E): ids and weights (k), largest first; equal
// ones by id. Serial.
void route(const Routing& routing, const float* logits, int32_t* ids, float* weights);

// y = sum over the chosen of weight * expert(h), without norm or residual: h (T, D) ->
// y (T, D), with ids and weights (T, k).
void run_experts(const ExpertLayer& layer, const float* h, int64_t tokens, const int32_t* ids,
                 const float* weights, float* y, Workspace& work, Pool& pool);

struct Head {
  Norm norm;
  Matrix output;  // (V, D)
};

// logits (T, V) = output(norm(x)).
void head_block(const Head& head, const float* x, int64_t tokens, float* logits, Workspace& work,
                Pool& pool);

}  // namespace conifer
