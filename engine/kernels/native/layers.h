// Layers that run in sequence as a single task. The KV cache is updated in place.
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

// The number of float32 values in a recurrent layer's state.
struct StateShape {
  int64_t tail, memory;
};

// Indices of the saved state that a step starts from and of the states it saves; -1: none.
struct StateSteps {
  int from = -1, mark = -1, end = -1;
  int64_t mark_tokens = 0;  // tokens in this step before the mark
};

// A layer's keys and values. window: at least this many recent tokens stay cached; 0 for all.
// slots: capacity in tokens.
struct CacheShape {
  int64_t kv_heads, key_dim, value_dim, window, slots;
};

// A stack's caches: keys and values for its attention layers, for `capacity` tokens, and states for
// its recurrent layers. Address space is reserved up front. Pages are allocated as tokens fill
// them. When its slots are full, a layer with a window moves the tokens it still needs to the
// front.
//
// A recurrent state cannot be rewound. As in engine.nn.cache, three states are saved: the latest,
// the previous one, and a mark `rewind` tokens before the end of the most recent prompt.
class Caches {
 public:
  Caches(const std::vector<CacheShape>& layers, const std::vector<StateShape>& states,
         int64_t capacity, CacheType type, int64_t rewind);

  int64_t capacity() const { return capacity_; }
  int64_t state_bytes() const { return state_bytes_; }

  // The caches as passed to one task. `drop`: tokens to remove first from the front of each layer.
  struct Step {
    std::vector<KVCache> layers;
    std::vector<CacheShape> shapes;
    std::vector<int64_t> drop;
    std::shared_ptr<const void> memory;
    std::vector<RecurrentState> states;  // (saved states, recurrent layers)
    StateSteps saved;

    RecurrentStates recurrent(size_t layer) const;
    void make_room(size_t layer, int64_t offset) const;  // removes them
  };
  // Prepare a step that starts at token `offset`. Throws if no state was saved at `offset`.
  // Discards states saved after it.
  Step step(int64_t offset, int64_t tokens);

  // Roll back the last step, which started at `offset`, after its task was cancelled.
  void undo(int64_t offset);

  // The longest length up to `length` to which the caches can be rewound.
  int64_t rewindable_length(int64_t length) const;

  // The first token in each layer's buffers, and the capacity of the buffers in tokens.
  std::vector<int64_t> bases() const;
  void set_bases(const std::vector<int64_t>& bases);
  std::vector<int64_t> slots() const;

  struct Part {
    void* data;
    int64_t bytes;
  };

  // Each layer's keys and values. With Q8, each is followed by its scales.
  std::vector<Part> buffers() const;

  // The mark, then the number of tokens in each saved state; -1: none.
  std::vector<int64_t> marks() const;
  void set_marks(const std::vector<int64_t>& marks);
  // Tail and memory, if it has one, for each saved state and layer.
  std::vector<Part> states() const;

  // Output of the last task that wrote to the caches, and input of the next one. MLX tracks only
  // arrays, so this makes it run the tasks in order.
  std::optional<mx::array> ticket;

 private:
  static constexpr int SAVED = 3;

  StateSteps advance(int64_t offset, int64_t tokens);
  int find(int64_t position) const;
  int take_free(int64_t position, int in_use);

  int64_t capacity_, rewind_, state_bytes_ = 0;
  std::vector<StateShape> state_shapes_;
  std::vector<RecurrentState> states_;
  int64_t positions_[SAVED] = {-1, -1, -1};  // tokens in each saved state; -1: unused
  int64_t mark_ = -1;
  int64_t from_tokens_ = -1;  // length and index of the state the last step started from
  int from_ = -1;
  std::vector<CacheShape> shapes_;
  std::vector<KVCache> layers_;  // as they will be after the last launched task
  std::shared_ptr<const void> memory_;
};

// A float32 vector with a fixed address.
class Vector {
 public:
  Vector() = default;
  explicit Vector(const std::optional<mx::array>& values);
  const float* data() const { return values_ ? values_->data<float>() : nullptr; }

 private:
  std::optional<mx::array> values_;
};

// What a layer adds its result to, and where it writes the sum. All layers read the stream. Layers
// that read the same input sum their results aside; one of them or an EndLayer ends this.
enum class Place : int32_t { Stream = 0, Aside = 1, Nothing = 2 };

// A sequence of layers. All must be added before the first run.
class Stack {
 public:
  using Layer = std::variant<AttentionLayer, LatentLayer, RecurrentLayer, ConvLayer, DenseLayer,
                             ExpertLayer, EndLayer>;

  Stack() : all_(std::make_shared<All>()) {}

  // Add a layer, with the weights and vectors it points to. base: what its result is added to; to:
  // where the sum is written. lender: which of the attention layers wrote the cache that it reads.
  void add(const Layer& layer, const std::vector<Weight>& weights,
           const std::vector<Vector>& vectors, Place base, Place to, int lender);

  // Total size of the weights in bytes.
  int64_t bytes() const;

  // The share of layers finished by the current task, or the most recent one.
  double done() const;

  // While true, tasks stop after their current layer, and their output is undefined.
  void cancel(bool yes) { all_->cancelled = yes; }

  // Create empty caches for these layers. slack: room for extra tokens beyond a window.
  Caches new_caches(int64_t capacity, CacheType type, int64_t rewind, int64_t slack) const;

  // x (T, D) -> (T, D). The first token is at position `offset`. Without caches, tokens attend only
  // to each other, and no layer may read another one's. embedded: what the layers embed each token
  // as, (T, their widths), if they do. With caches and a store of experts, the result is that of
  // one run for each block of BLOCK_TOKENS positions. It is undefined if the store stops.
  mx::array run(const mx::array& x, Caches* caches, int64_t offset,
                const std::optional<mx::array>& embedded) const;

  // Also returns the experts chosen in each of the L routed layers: (L, T, k) int32. L must be at
  // least 1, and all routed layers must have the same k.
  std::pair<mx::array, mx::array> run_with_routes(const mx::array& x, Caches* caches,
                                                  int64_t offset,
                                                  const std::optional<mx::array>& embedded) const;

 private:
  struct Entry {
    Layer layer;
    Place base, to;
    int lender;  // index of the attention layer whose cache it reads; -1: its own, if it has one
  };
  struct All {
    std::vector<Entry> layers;
    std::vector<Weight> weights;
    std::vector<Vector> vectors;
    std::atomic<bool> cancelled{false};
    std::atomic<size_t> done{0};

    ExpertStore* store() const;  // null: all experts are in memory
  };

  std::vector<mx::array> launch_all(const mx::array& x, Caches* caches, int64_t offset,
                                    const std::optional<mx::array>& embedded,
                                    const std::optional<Output>& routes) const;

  std::shared_ptr<All> all_;
};

// Attention of scaled q (T, H, d) over rows (L, d). The last T rows belong to the new tokens, and
// the first `value_dim` entries of a row are its value. Returns (T, H, value_dim).
// scales: for int8 rows.
mx::array latent_attention_task(const mx::array& q, const mx::array& rows,
                                const std::optional<mx::array>& scales, int64_t value_dim);

// The final norm and the projection to the vocabulary: (T, D) -> (T, V).
class HeadLayer {
 public:
  HeadLayer(const Norm& norm, const std::vector<Vector>& vectors, const Weight& output);
  mx::array run(const mx::array& x) const;

 private:
  std::vector<Vector> vectors_;  // the norm's
  Weight output_;
  Head head_;
};

}  // namespace conifer
