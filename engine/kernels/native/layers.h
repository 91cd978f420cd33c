// Layers run one behind the other as a single task, over a KV cache that is appended to in place.
//
// Axes: T tokens, D width, K kv heads, d head width, V vocabulary.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "task.h"
#include "weight.h"

namespace conifer {

// What one layer keeps: of all tokens, or at least of the last `window` ones in room for `slots`.
struct CacheShape {
  int64_t kv_heads, key_dim, value_dim, window, slots;
};

// The keys and values of a stack's attention layers, for `capacity` tokens. The address space is
// taken at once and the memory as tokens fill it. A layer with a window moves what it still needs to
// the front when its slots are used up.
class Caches {
 public:
  Caches(const std::vector<CacheShape>& layers, int64_t capacity, CacheType type);

  int64_t capacity() const { return capacity_; }

  // What a task for the tokens from `offset` on works with. `drop`: how many tokens each layer has to
  // drop from its front first.
  struct Step {
    std::vector<KVCache> layers;
    std::vector<CacheShape> shapes;
    std::vector<int64_t> drop;
    std::shared_ptr<const void> memory;

    void move(size_t layer, int64_t offset) const;  // does it
  };
  Step step(int64_t offset, int64_t tokens);

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

  // An output of the last task that wrote here, and an input of the next: MLX's graph knows of no
  // memory but its arrays, and would otherwise be free to reorder or skip them.
  std::optional<mx::array> ticket;

 private:
  int64_t capacity_;
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
  using Layer = std::variant<AttentionLayer, LatentLayer, DenseLayer, ExpertLayer>;

  Stack() : all_(std::make_shared<All>()) {}

  // With what the layer points into.
  void add(const Layer& layer, const std::vector<Weight>& weights,
           const std::vector<Vector>& vectors);

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
