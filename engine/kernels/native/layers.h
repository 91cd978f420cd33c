// Layers run one behind the other as a single task, over a KV cache that is appended to in place.
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

// Float32 values of what a recurrent layer remembers.
struct StateShape {
  int64_t tail, memory;
};

// Which of the kept states a step goes on from and which it makes; -1: none.
struct StateSteps {
  int from = -1, mark = -1, end = -1;
  int64_t mark_tokens = 0;  // of the step, behind which the mark is
};

// What one layer keeps: of all tokens, or at least of the last `window` ones in room for `slots`.
struct CacheShape {
  int64_t kv_heads, key_dim, value_dim, window, slots;
};

// The keys and values of a stack's attention layers, for `capacity` tokens. The address space is
// taken at once and the memory as tokens fill it. A layer with a window moves what it still needs to
// the front when its slots are used up.
//
// The states of its recurrent layers cannot go back. Kept are, as in engine.cache, the newest one,
// the one before it, and a mark `rewind` tokens before the end of the last prompt.
class Caches {
 public:
  Caches(const std::vector<CacheShape>& layers, const std::vector<StateShape>& states,
         int64_t capacity, CacheType type, int64_t rewind);

  int64_t capacity() const { return capacity_; }
  int64_t state_bytes() const { return state_bytes_; }

  // What a task for the tokens from `offset` on works with. `drop`: how many tokens each layer has to
  // drop from its front first.
  struct Step {
    std::vector<KVCache> layers;
    std::vector<CacheShape> shapes;
    std::vector<int64_t> drop;
    std::shared_ptr<const void> memory;
    std::vector<RecurrentState> states;  // kept ones, one behind the other, of each recurrent layer
    StateSteps kept;

    RecurrentStates recurrent(size_t layer) const;
    void move(size_t layer, int64_t offset) const;  // does it
  };
  // Throws where no state of `offset` tokens is kept. States of other tokens are forgotten.
  Step step(int64_t offset, int64_t tokens);

  // Forget the last step, from `offset` on, whose task was given up: its tokens were never seen.
  void undo(int64_t offset);

  // How many tokens, `length` at most, the caches can go back to.
  int64_t reach(int64_t length) const;

  // The token that each layer's memory begins with, and for how many it has room.
  std::vector<int64_t> bases() const;
  void set_bases(const std::vector<int64_t>& bases);
  std::vector<int64_t> slots() const;

  struct Part {
    void* data;
    int64_t bytes;
  };

  // Where everything lies, layer by layer: keys, values; of Q8 the scales behind each.
  std::vector<Part> memory() const;

  // The mark, and how many tokens each kept state has seen: -1 for none. And where they lie: of each
  // state and layer the tail and the memory.
  std::vector<int64_t> marks() const;
  void set_marks(const std::vector<int64_t>& marks);
  std::vector<Part> states() const;

  // An output of the last task that wrote here, and an input of the next: MLX's graph knows of no
  // memory but its arrays, and would otherwise be free to reorder or skip them.
  std::optional<mx::array> ticket;

 private:
  static constexpr int KEPT = 3;

  StateSteps advance(int64_t offset, int64_t tokens);
  int find(int64_t position) const;
  int take_free(int64_t position, int in_use);

  int64_t capacity_, rewind_, state_bytes_ = 0;
  std::vector<StateShape> state_shapes_;
  std::vector<RecurrentState> states_;
  int64_t positions_[KEPT] = {-1, -1, -1};  // tokens that each kept state has seen; -1: not in use
  int64_t mark_ = -1;
  int64_t from_tokens_ = -1;  // what the last step went on from, and where that lies: still whole
  int from_ = -1;
  std::vector<CacheShape> shapes_;
  std::vector<KVCache> layers_;  // as the last task that was launched leaves them
  std::shared_ptr<const void> memory_;
};

// A vector of float32 that stays where it is.
class Vector {
 public:
  Vector() = default;
  explicit Vector(const std::optional<mx::array>& values);
  const float* data() const { return values_ ? values_->data<float>() : nullptr; }

 private:
  std::optional<mx::array> values_;
};

// Layers in the order they were added. Once it has run it must not grow.
class Stack {
 public:
  using Layer = std::variant<AttentionLayer, LatentLayer, RecurrentLayer, DenseLayer, ExpertLayer>;

  Stack() : all_(std::make_shared<All>()) {}

  // With what the layer points into.
  void add(const Layer& layer, const std::vector<Weight>& weights,
           const std::vector<Vector>& vectors);

  // Bytes of all weights.
  int64_t bytes() const;

  // The share of its layers that the task under way, or the last one, has behind it.
  double done() const;

  // While this is true, tasks end after the layer that they are at, and give out nonsense.
  void give_up(bool yes) { all_->given_up = yes; }

  // x (T, D), the first token at position `offset` -> (T, D). Without caches the tokens see only
  // each other.
  mx::array run(const mx::array& x, Caches* caches, int64_t offset) const;

  // The same, and the experts that each of the L layers with experts chose: (L, T, k) int32. There
  // must be such a layer, and all must choose as many.
  std::pair<mx::array, mx::array> run_and_tell(const mx::array& x, Caches* caches,
                                               int64_t offset) const;

 private:
  struct All {
    std::vector<Layer> layers;
    std::vector<Weight> weights;
    std::vector<Vector> vectors;
    std::atomic<bool> given_up{false};
    std::atomic<size_t> done{0};
  };

  std::vector<mx::array> launch_all(const mx::array& x, Caches* caches, int64_t offset,
                                    const std::optional<Output>& routes) const;

  std::shared_ptr<All> all_;
};

// Attention of q (T, H, d), already scaled, over rows (L, d) whose first `value_dim` values are the
// values and whose last T are the new tokens' own: (T, H, value_dim). scales: of rows of int8.
mx::array latent_attention(const mx::array& q, const mx::array& rows,
                           const std::optional<mx::array>& scales, int64_t value_dim);

// The last norm and the projection to the vocabulary: (T, D) -> (T, V).
class HeadLayer {
 public:
  HeadLayer(Vector norm, float eps, Weight output);
  mx::array run(const mx::array& x) const;

 private:
  Vector norm_;
  Weight output_;
  Head head_;
};

}  // namespace conifer
