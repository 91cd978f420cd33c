// Layers that run one after the other as a single task, over a KV cache that is updated in place.
//
// Axes: T tokens, D width, K kv heads, d head width, V vocabulary.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "task.h"
#include "weight.h"

namespace conifer {

// Float32 values in the state of a recurrent layer.
struct StateShape {
  int64_t tail, memory;
};

// The saved state that a step continues from and those that it saves, by place; -1: none.
struct StateSteps {
  int from = -1, mark = -1, end = -1;
  int64_t mark_tokens = 0;  // tokens of the step before the mark
};

// Keys and values of one layer. window: how many of the last tokens it keeps at least, 0 for all.
// slots: tokens that it has room for.
struct CacheShape {
  int64_t kv_heads, key_dim, value_dim, window, slots;
};

// The caches of a stack: keys and values of its attention layers for `capacity` tokens, and states
// of its recurrent layers. Address space is reserved at once; pages are allocated as tokens fill
// them. A layer with a window moves the tokens it still needs to the front when its slots are full.
//
// A recurrent state cannot be rewound. As in engine.nn.cache, three are saved: the newest, the one
// before it, and a mark `rewind` tokens before the end of the last prompt.
class Caches {
 public:
  Caches(const std::vector<CacheShape>& layers, const std::vector<StateShape>& states,
         int64_t capacity, CacheType type, int64_t rewind);

  int64_t capacity() const { return capacity_; }
  int64_t state_bytes() const { return state_bytes_; }

  // The caches as one task sees them. `drop`: tokens that each layer first drops from its front.
  struct Step {
    std::vector<KVCache> layers;
    std::vector<CacheShape> shapes;
    std::vector<int64_t> drop;
    std::shared_ptr<const void> memory;
    std::vector<RecurrentState> states;  // (saved states, recurrent layers)
    StateSteps saved;

    RecurrentStates recurrent(size_t layer) const;
    void make_room(size_t layer, int64_t offset) const;  // drops them
  };
  // Prepare a step over the tokens from `offset` on. Throws if no state of `offset` tokens is
  // saved; discards the states of later tokens.
  Step step(int64_t offset, int64_t tokens);

  // Roll back the last step, from `offset` on, after its task was cancelled.
  void undo(int64_t offset);

  // The largest length, at most `length`, that the caches can be rewound to.
  int64_t rewindable_length(int64_t length) const;

  // The first token in each layer's buffers, and the tokens that they have room for.
  std::vector<int64_t> bases() const;
  void set_bases(const std::vector<int64_t>& bases);
  std::vector<int64_t> slots() const;

  struct Part {
    void* data;
    int64_t bytes;
  };

  // Keys and values of each layer; for Q8 each is followed by its scales.
  std::vector<Part> buffers() const;

  // The mark, then the tokens that each saved state has seen; -1: none.
  std::vector<int64_t> marks() const;
  void set_marks(const std::vector<int64_t>& marks);
  // Tail and memory of each saved state and layer.
  std::vector<Part> states() const;

  // An output of the last task that wrote to the caches and an input of the next one. It makes MLX,
  // which tracks arrays only, run the tasks in order.
  std::optional<mx::array> ticket;

 private:
  static constexpr int SAVED = 3;

  StateSteps advance(int64_t offset, int64_t tokens);
  int find(int64_t position) const;
  int take_free(int64_t position, int in_use);

  int64_t capacity_, rewind_, state_bytes_ = 0;
  std::vector<StateShape> state_shapes_;
  std::vector<RecurrentState> states_;
  int64_t positions_[SAVED] = {-1, -1, -1};  // tokens that each saved state has seen; -1: unused
  int64_t mark_ = -1;
  int64_t from_tokens_ = -1;  // tokens and place of the state that the last step continued from
  int from_ = -1;
  std::vector<CacheShape> shapes_;
  std::vector<KVCache> layers_;  // as the last launched task leaves them
  std::shared_ptr<const void> memory_;
};

// A float32 vector at a fixed address.
class Vector {
 public:
  Vector() = default;
  explicit Vector(const std::optional<mx::array>& values);
  const float* data() const { return values_ ? values_->data<float>() : nullptr; }

 private:
  std::optional<mx::array> values_;
};

// Layers in the order they were added. All must be added before the first run.
class Stack {
 public:
  using Layer = std::variant<AttentionLayer, LatentLayer, RecurrentLayer, DenseLayer, ExpertLayer>;

  Stack() : all_(std::make_shared<All>()) {}

  // Add a layer, with the weights and vectors that it points into.
  void add(const Layer& layer, const std::vector<Weight>& weights,
           const std::vector<Vector>& vectors);

  // Bytes of all weights.
  int64_t bytes() const;

  // The share of layers that the current task, or the last one, has finished.
  double done() const;

  // While true, tasks stop after their current layer and their output is undefined.
  void cancel(bool yes) { all_->cancelled = yes; }

  // Empty caches of these layers. slack: room for tokens beyond a window.
  Caches new_caches(int64_t capacity, CacheType type, int64_t rewind, int64_t slack) const;

  // x (T, D), the first token at position `offset` -> (T, D). Without caches, tokens attend only to
  // each other.
  mx::array run(const mx::array& x, Caches* caches, int64_t offset) const;

  // Also returns the experts that each of the L routed layers chose: (L, T, k) int32. L >= 1, and k
  // is the same in all of them.
  std::pair<mx::array, mx::array> run_with_routes(const mx::array& x, Caches* caches,
                                                  int64_t offset) const;

 private:
  struct All {
    std::vector<Layer> layers;
    std::vector<Weight> weights;
    std::vector<Vector> vectors;
    std::atomic<bool> cancelled{false};
    std::atomic<size_t> done{0};
  };

  std::vector<mx::array> launch_all(const mx::array& x, Caches* caches, int64_t offset,
                                    const std::optional<Output>& routes) const;

  std::shared_ptr<All> all_;
};

// Attention of q (T, H, d), scaled, over rows (L, d), the last T of them the new tokens': the first
// `value_dim` values of a row are its value. Returns (T, H, value_dim). scales: for int8 rows.
mx::array latent_attention_task(const mx::array& q, const mx::array& rows,
                                const std::optional<mx::array>& scales, int64_t value_dim);

// The final norm and the projection to the vocabulary: (T, D) -> (T, V).
class HeadLayer {
 public:
  HeadLayer(const mx::array& norm, float eps, const Weight& output);
  mx::array run(const mx::array& x) const;

 private:
  Vector norm_;
  Weight output_;
  Head head_;
};

}  // namespace conifer
