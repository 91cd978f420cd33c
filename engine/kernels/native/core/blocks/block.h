// Complete decoder layers, each computed in one parallel region: attention, dense feed-forward,
// mixture of experts, output head. The structs are plain views; the caller keeps their memory
// alive. Comments say which pointers may be null. x and y are (T, D) float32 with packed rows.
// y may be x.
//
// Axes: T tokens, D width, H query heads, K kv heads, d head width, E experts, k chosen, F hidden.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "attention/attention.h"
#include "blocks/norm_rope.h"
#include "gemm/matmul.h"
#include "quant/types.h"
#include "store/store.h"
#include "threads/pool.h"
#include "threads/share.h"

namespace conifer::blocks {

using attention::KVCache;
using gemm::Activations;
using quant::Matrix;
using store::ExpertStore;
using threads::Pool;
using threads::Range;
using threads::share;

// A feed-forward layer's activation. Silu: gate * sigmoid(gate) * up. Clamped: gate *
// sigmoid(1.702 gate) * (up + 1), where gate is at most 7 and up is in -7..7. Gelu: gelu(gate) *
// up. Capped: min(silu(gate), limit) * up, where up is in -limit..limit.
enum class Activation : int32_t { Silu = 0, Clamped = 1, Gelu = 2, Capped = 3 };

// How a position scales queries: by 1 + scale * ln(1 + floor((position + shift) / length)).
struct Temperature {
  float scale = 0.0f;
  int64_t length = 1, shift = 0;

  float at(int64_t position) const;
};

// What becomes of the gate of an attention head before it multiplies the head's result.
enum class Gate : int32_t { Sigmoid = 0, Softplus = 1 };

// Scratch memory for blocks, as large as the largest call so far needed. One call at a time.
struct Workspace {
  Workspace();
  ~Workspace();
  // True if this is a step of decoding, which has its own kernels; false for a prompt's tokens.
  bool decodes(int64_t tokens) const { return tokens == 1 && !prompt; }

  struct Parts;
  std::unique_ptr<Parts> parts;
  bool prompt = false;  // even one token is part of a prompt
  // Tokens before the first of several blocks of BLOCK_TOKENS; 0: all tokens are one block.
  int64_t first_block = 0;
};

struct AttentionLayer {
  Norm norm;       // of x
  Norm post_norm;  // of the block's result; weight null: none
  // (H d, D), (K d, D), (K dv, D), (D, H dv); gated: q is (H 2d, D). k.data null: the cache holds
  // the keys and values of these tokens already. v.data null: k's result is also the values.
  Matrix q, k, v, output;
  const float* q_bias;  // these four may be null
  const float* k_bias;
  const float* v_bias;
  const float* output_bias;
  Norm q_norm, k_norm;  // for queries and keys; weight null: none
  Norm v_norm;          // for each head's values; weight null: none
  bool gated;           // a gate follows each head's query; its sigmoid scales the head
  bool whole_norms;     // q_norm and k_norm apply to whole projections, not to each head
  bool norms_last;      // they follow the rotation; only for per-head norms
  Matrix gate;          // (H or H dv, D): scales each head, or each of its values; data null: none
  Gate gate_kind;
  Rope rope;       // dims 0: none
  Rope long_rope;  // takes rope's place in longer contexts than long_from; dims 0: none
  int64_t long_from;
  const float* sinks;  // (H), may be null: scores without a value in the softmax
  int64_t heads, kv_heads, key_dim, value_dim;  // heads / kv_heads: an integer up to MAX_ROWS
  int64_t window;           // tokens that a token attends to, including itself; 0: all
  bool chunked;             // a token attends to those since the last multiple of `window` instead
  float scale;              // factor on scores
  float score_cap;          // scores become cap * tanh(score / cap); 0: they do not
  Temperature temperature;  // factor on queries
  float residual;           // factor on the block's result
};

// y = base + residual * output(attention(rope(norm(q)), cache)). Appends T tokens to the cache at
// `offset`. The buffers must have room for offset - cache's base + T tokens. If cache is null, the
// tokens attend only to each other, but the rotation still starts at offset. base: null for x.
void attention_block(const AttentionLayer& layer, const KVCache* cache, int64_t offset,
                     const float* x, int64_t tokens, float* y, Workspace& work, Pool& pool,
                     const float* base = nullptr);

// Chooses the `top` cached tokens with the largest scores for each token. A score is the sum over I
// heads of weight * max(q . k, 0). Tokens at positions below `top` see all tokens before them.
struct Indexer {
  Matrix q, k, weights;  // (I d, Q), (d, D), (I, D); k.data null: use the last layer's choice
  Norm k_norm;           // (d)
  Rope rope;             // for the first values of queries and keys
  int64_t heads;
  int64_t top;  // 0: there is no indexer, and tokens see all tokens before them
};

// Multi-head latent attention. Each head's own projections are multiplied into queries and results.
// A token stores one row, which all heads share: its normalised latent (R) and a rotated part (r).
struct LatentLayer {
  Norm norm;        // of x
  Matrix q_a;       // (Q, D); data null: one-step query projection
  Norm q_norm;      // (Q)
  Matrix q;         // (H d, D or Q); the last r of d are rotated
  Matrix kv_a;      // (R + r, D)
  Norm kv_norm;     // (R)
  Matrix k_b, v_b;  // for the first head, followed by the rest: (R, d - r), (dv, R)
  Matrix output;    // (D, H dv)
  Rope rope;        // for the rotated r; infinite periods: they stay
  Matrix gate;      // (H, D), data null: none; the gate's sigmoid scales a head's result
  int64_t heads;
  float scale, residual;
  Temperature temperature;
  Indexer indexer;  // only with a two-step query projection
};

// Same as attention_block, but the cache has one head, whose keys are the rows. Its values are the
// indexer's keys, if the layer has any.
void latent_block(const LatentLayer& layer, const KVCache* cache, int64_t offset, const float* x,
                  int64_t tokens, float* y, Workspace& work, Pool& pool);

// Where projections store one number per head h: in column at + h / group * step + h % group.
struct HeadColumns {
  int64_t at, group, step;
  int64_t of(int64_t head) const { return at + head / group * step + head % group; }
};

// A convolution over recent tokens, a recurrence (recurrence.h) over its result, and a gated norm.
// The inputs are the concatenated results of the input projections. q, k and v come from the
// convolved part. With s = softplus(step + step_bias), the decay is e^(rate s). The recurrence's
// factor is sigmoid(beta) for the delta rule, and s otherwise.
//
// If `by_channel`, a head has N steps, decays and biases, one per row of its state, in consecutive
// columns from step.at; each head has one rate. With a bound, the decay is
// e^(bound sigmoid(rate (step + step_bias))). Steps and gates may have a second projection, whose
// input is stored in their place.
struct RecurrentLayer {
  Norm norm;  // of x
  std::vector<Matrix> inputs;
  Matrix output;      // (D, A B P)
  const float* taps;  // (K, C)
  const float* bias;  // (C), may be null
  int64_t kernel, channels, mixed_at, gate_at;
  HeadColumns step, beta;    // beta: for the delta rule
  const float* step_bias;    // (A, B) or (A, B, N)
  const float* rate;         // (A, B); negative, unless bounded
  const float* skip;         // (A, B), may be null
  int64_t q_at, k_at, v_at;  // first channels
  int64_t a, b, key_heads, key_step_a, key_step_b, width, values;  // as in Recurrence
  bool delta, by_channel;  // channels: only for the delta rule
  float bound;             // least log decay, for channels; 0: none
  Matrix step_b, gate_b;   // (A B N, rank), (A B P, rank); data null: none
  float length_eps;        // for the delta rule's keys and queries
  Norm gated_norm;         // weight (M or 1, n), for M runs of n values
  int64_t norm_rows, norm_weights;
  bool gate_first, sigmoid_gate;
  float residual;

  int64_t lifted() const { return step_b.rows + gate_b.rows; }
  int64_t decays() const { return by_channel ? width : 1; }  // for each head
  int64_t heads() const { return a * b; }
  int64_t inner() const { return a * b * values; }
  int64_t state_values() const { return a * b * width * values; }
  int64_t tail_values() const { return (kernel - 1) * channels; }
};

// A recurrent layer's state: tail (K-1, C), memory (A, B, N, P).
struct RecurrentState {
  float* tail;
  float* memory;
};

// The state before the tokens, and the states to save; null: none. `from` must differ from the
// rest. mark: the state after the first `mark_tokens` tokens.
struct RecurrentStates {
  const RecurrentState* from;
  const RecurrentState* mark;
  const RecurrentState* end;
  int64_t mark_tokens;
};

// y = x + residual * output(gated norm(recurrence(convolution(inputs(norm(x)))))).
void recurrent_block(const RecurrentLayer& layer, const RecurrentStates& states, const float* x,
                     int64_t tokens, float* y, Workspace& work, Pool& pool);

// A convolution over recent tokens between two gates. The input projection's result is the gate of
// what is convolved, the gate of what the convolution yields, and the values, D each.
struct ConvLayer {
  Norm norm;             // of x
  Matrix input, output;  // (3D, D), (D, D)
  const float* taps;     // (K, D)
  int64_t kernel;
  float residual;

  int64_t tail_values() const { return (kernel - 1) * output.cols; }
};

// y = x + residual * output(after * convolution(before * values)). States have no memory.
void conv_block(const ConvLayer& layer, const RecurrentStates& states, const float* x,
                int64_t tokens, float* y, Workspace& work, Pool& pool);

struct DenseLayer {
  Norm norm;
  Matrix gate, up, down;  // (F, D), (F, D), (D, F); gate.data null: none
  float residual;
  Activation activation = Activation::Silu;
  float limit = 0.0f;    // for Capped
  Norm post_norm = {};   // of the block's result; weight null: none
  int64_t given_at = 0;  // if up.data is null: the first of the F columns that are given
};

// Rows that take the place of a projection: row t at values + t * stride.
struct Given {
  const float* values;
  int64_t stride;
};

// y = base + residual * down(activation(gate(h), up(h))), h = norm(x), or x if there is no norm.
// Without a gate, y = base + residual * down(max(up(h), 0)^2). base: null for x. given: the values
// that take the place of up(h) if up.data is null.
void dense_block(const DenseLayer& layer, const float* x, int64_t tokens, float* y, Workspace& work,
                 Pool& pool, const float* base = nullptr, Given given = {});

// The end of a transformer block: y = scale * (x + norm(side)), or scale * x without a norm.
struct EndLayer {
  Norm norm;
  float scale;
};

void end_block(const EndLayer& layer, const float* x, const float* side, int64_t tokens,
               int64_t width, float* y, Workspace& work, Pool& pool);

// How router logits become weights. SoftmaxOfChosen: softmax over the chosen experts only.
// SparseMixer: experts are chosen one by one; each weight is a softmax over the remaining experts
// whose logits are close to the largest.
enum class Gating : int32_t { Softmax = 0, Sigmoid = 1, SoftmaxOfChosen = 2, SparseMixer = 3 };

struct Routing {
  int64_t experts, used;
  bool renormalize;  // divide the chosen weights by max(their sum, 6.103515625e-05)
  float scale;       // then multiply by this
  Gating gating = Gating::Softmax;
  const float* bias = nullptr;          // (E), may be null: added to scores, but only for choosing
  int64_t groups = 1, groups_used = 1;  // groups of consecutive experts; only the best are used
};

struct ExpertLayer {
  Norm norm;
  Matrix router;  // (E, D)
  // For the first expert; the rest follow without gaps; gate.data null: none. With a store, their
  // addresses mean nothing else.
  Matrix gate, up, down;
  Routing routing;
  Activation activation = Activation::Silu;
  const float* router_bias = nullptr;  // (E); all four biases may be null
  const float* gate_bias = nullptr;    // (E, F)
  const float* up_bias = nullptr;      // (E, F)
  const float* down_bias = nullptr;    // (E, D)
  // An expert that is always used; data null: none. Its weight is sigmoid(score . h), or 1.
  Matrix shared_gate = {}, shared_up = {}, shared_down = {};
  const float* shared_score = nullptr;  // (D)
  Activation shared_activation = Activation::Silu;
  float limit = 0.0f, shared_limit = 0.0f;  // for Capped
  // If not 0, an expert's gate and up are halves of one matrix with this many rows, and so are
  // their biases.
  int64_t merged_rows = 0;
  bool weight_on_input = false;  // weights scale an expert's input instead of its result
  Norm router_norm = {};         // of x, for the router; weight null: it reads h
  Norm post_norm = {};           // of the block's result; weight null: none
  // The routed experts' own width: (W, D), (D, W); data null: they read and write D values.
  Matrix latent_down = {}, latent_up = {};
  float residual = 1.0f;
  ExpertStore* store = nullptr;  // has the experts; null: they are in memory
  int store_layer = 0;           // this layer's number there
};

// y = base + residual * (sum of weight * expert(h) over the chosen experts + shared(h)), where
// h = norm(x) and expert(h) = down(activation(gate(h), up(h))), or down(max(up(h), 0)^2) without a
// gate. With latent experts, the sum is latent_up(sum of weight * expert(latent_down(h))).
// chosen: receives the ids of the chosen experts (T, k); may be null. base: null for x; it must be
// null for latent experts. If the store stops, y is undefined.
void moe_block(const ExpertLayer& layer, const float* x, int64_t tokens, float* y, Workspace& work,
               Pool& pool, int32_t* chosen = nullptr, const float* base = nullptr);

// The same for latent experts, whose shared expert has no score. moe_block calls it.
void latent_moe_block(const ExpertLayer& layer, const float* x, int64_t tokens, float* y,
                      Workspace& work, Pool& pool, int32_t* chosen);

// Choose `used` experts by `logits` (E). Writes ids and weights (k), best first, with ties ordered
// by id. Serial.
void route(const Routing& routing, const float* logits, int32_t* ids, float* weights);

// y = sum of weight * expert(h) over the chosen experts, without norm or residual: h (T, D) ->
// y (T, D). ids and weights are (T, k).
void run_experts(const ExpertLayer& layer, const float* h, int64_t tokens, const int32_t* ids,
                 const float* weights, float* y, Workspace& work, Pool& pool);

struct Head {
  Norm norm;
  Matrix output;  // (V, D)
};

// logits (T, V) = output(norm(x)).
void head_block(const Head& head, const float* x, int64_t tokens, float* logits, Workspace& work,
                Pool& pool);

}  // namespace conifer::blocks
