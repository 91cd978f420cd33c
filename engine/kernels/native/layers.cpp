// Layer stacks and their caches.
#include "layers.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/blocks/latent.h"

namespace conifer {

namespace {

int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Anonymous memory, allocated page by page on first write.
struct Mapping {
  void* start;
  size_t bytes;

  explicit Mapping(size_t bytes) : bytes(bytes) {
    start = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) throw std::bad_alloc();
    // With huge pages, the first token would allocate memory for thousands of tokens per head.
    madvise(start, bytes, MADV_NOHUGEPAGE);
  }
  ~Mapping() { munmap(start, bytes); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
};

struct Sizes {
  int64_t values, scales;  // bytes
};

// Storage for `count` vectors of `dims` values each.
Sizes sizes(int64_t count, int64_t dims, CacheType type) {
  switch (type) {
    case CacheType::F16: return {2 * count * dims, 0};
    case CacheType::F32: return {4 * count * dims, 0};
    case CacheType::Q8: return {count * dims, 2 * count * (dims / q8_group(dims))};
  }
  throw std::invalid_argument("unknown cache type");
}

}  // namespace

Caches::Caches(const std::vector<CacheShape>& layers, const std::vector<StateShape>& states,
               int64_t capacity, CacheType type, int64_t rewind)
    : capacity_(capacity), rewind_(rewind), state_shapes_(states), shapes_(layers) {
  int64_t bytes = 0;
  auto count = [&](const CacheShape& layer, int64_t dims) {
    const Sizes size = sizes(layer.kv_heads * layer.slots, dims, type);
    bytes += whole_lines(size.values) + whole_lines(size.scales);
  };
  for (const CacheShape& layer : layers) {
    count(layer, layer.key_dim);
    count(layer, layer.value_dim);
  }
  for (const StateShape& state : states)
    state_bytes_ += SAVED * (whole_lines(4 * state.tail) + whole_lines(4 * state.memory));
  auto memory = std::make_shared<Mapping>(bytes + state_bytes_);
  auto* at = static_cast<uint8_t*>(memory->start);
  auto take = [&](const CacheShape& layer, int64_t dims) {
    const Sizes size = sizes(layer.kv_heads * layer.slots, dims, type);
    uint8_t* scales = at + whole_lines(size.values);
    CacheBuffer made{at, size.scales ? reinterpret_cast<uint16_t*>(scales) : nullptr};
    at = scales + whole_lines(size.scales);
    return made;
  };
  for (const CacheShape& layer : layers) {
    const CacheBuffer keys = take(layer, layer.key_dim), values = take(layer, layer.value_dim);
    layers_.push_back({type, layer.slots, 0, keys, values});
  }
  const auto take_floats = [&](int64_t count) {
    auto* made = reinterpret_cast<float*>(at);
    at += whole_lines(4 * count);
    return made;
  };
  for (int i = 0; i < SAVED; ++i)
    for (const StateShape& state : states) {
      float* tail = take_floats(state.tail);
      states_.push_back({tail, take_floats(state.memory)});
    }
  memory_ = memory;
}

int Caches::find(int64_t position) const {
  const auto* at = std::find(positions_, positions_ + SAVED, position);
  return at == positions_ + SAVED ? -1 : static_cast<int>(at - positions_);
}

// Return the index of a free or replaceable saved state, never of the one in use.
int Caches::take_free(int64_t position, int in_use) {
  for (int i = 0; i < SAVED; ++i)
    if (i != in_use &&
        (positions_[i] < 0 || (positions_[i] != mark_ && positions_[i] < position))) {
      positions_[i] = position;
      return i;
    }
  throw std::logic_error("no free place for a state");
}

StateSteps Caches::advance(int64_t offset, int64_t tokens) {
  StateSteps steps;
  if (states_.empty()) return steps;
  if (offset > 0 && (steps.from = find(offset)) < 0)
    throw std::invalid_argument("no state is saved after " + std::to_string(offset) + " tokens");
  for (int64_t& position : positions_)
    if (position > offset) position = -1;
  if (mark_ > offset) mark_ = -1;
  from_ = steps.from, from_tokens_ = offset;
  const int64_t end = offset + tokens;
  if (tokens >= rewind_) {
    mark_ = end - rewind_;
    if (mark_ > offset) {
      steps.mark = take_free(mark_, steps.from);
      steps.mark_tokens = mark_ - offset;
    }
  }
  steps.end = take_free(end, steps.from);
  for (int64_t& position : positions_)
    if (position != mark_ && position < end - 1) position = -1;
  return steps;
}

void Caches::undo(int64_t offset) {
  for (int64_t& position : positions_)
    if (position > offset) position = -1;
  if (mark_ > offset) mark_ = -1;
  if (from_ >= 0 && from_tokens_ == offset) positions_[from_] = offset;
}

RecurrentStates Caches::Step::recurrent(size_t layer) const {
  const size_t layers = states.size() / SAVED;
  const auto state = [&](int place) {
    return place < 0 ? nullptr : &states[size_t(place) * layers + layer];
  };
  return {state(saved.from), state(saved.mark), state(saved.end), saved.mark_tokens};
}

Caches::Step Caches::step(int64_t offset, int64_t tokens) {
  const StateSteps saved = advance(offset, tokens);
  std::vector<int64_t> drop(layers_.size(), 0);
  for (size_t i = 0; i < layers_.size(); ++i) {
    KVCache& cache = layers_[i];
    if (offset == 0) cache.base = 0;
    if (offset + tokens - cache.base <= cache.capacity) continue;
    drop[i] = std::max<int64_t>(offset - shapes_[i].window + 1 - cache.base, 0);
    cache.base += drop[i];
  }
  return {layers_, shapes_, std::move(drop), memory_, states_, saved};
}

void Caches::Step::make_room(size_t layer, int64_t offset) const {
  if (drop[layer] == 0) return;
  const KVCache& cache = layers[layer];
  const CacheShape& shape = shapes[layer];
  const auto shift = [&](void* buffer, int64_t bytes) {  // bytes per token
    auto* at = static_cast<uint8_t*>(buffer);
    for (int64_t head = 0; head < shape.kv_heads; ++head, at += cache.capacity * bytes)
      std::memmove(at, at + drop[layer] * bytes,
                   static_cast<size_t>((offset - cache.base) * bytes));
  };
  const auto shift_both = [&](const CacheBuffer& buffer, int64_t dims) {
    const Sizes size = sizes(1, dims, cache.type);
    shift(buffer.values, size.values);
    if (buffer.scales) shift(buffer.scales, size.scales);
  };
  shift_both(cache.keys, shape.key_dim);
  if (shape.value_dim) shift_both(cache.values, shape.value_dim);
}

int64_t Caches::rewindable_length(int64_t length) const {
  for (size_t i = 0; i < layers_.size(); ++i)
    if (layers_[i].base > 0 && layers_[i].base > length - shapes_[i].window + 1) return 0;
  if (states_.empty()) return length;
  int64_t most = 0;
  for (const int64_t position : positions_)
    if (position <= length) most = std::max(most, position);
  return most;
}

std::vector<int64_t> Caches::bases() const {
  std::vector<int64_t> found;
  for (const KVCache& cache : layers_) found.push_back(cache.base);
  return found;
}

void Caches::set_bases(const std::vector<int64_t>& bases) {
  if (bases.size() != layers_.size()) throw std::invalid_argument("expected one base per layer");
  for (size_t i = 0; i < bases.size(); ++i) layers_[i].base = bases[i];
}

std::vector<int64_t> Caches::slots() const {
  std::vector<int64_t> found;
  for (const CacheShape& shape : shapes_) found.push_back(shape.slots);
  return found;
}

std::vector<int64_t> Caches::marks() const {
  std::vector<int64_t> found{mark_};
  if (!states_.empty()) found.insert(found.end(), positions_, positions_ + SAVED);
  return found;
}

void Caches::set_marks(const std::vector<int64_t>& marks) {
  if (marks.size() != this->marks().size())
    throw std::invalid_argument("expected one mark per state");
  mark_ = marks[0];
  std::copy(marks.begin() + 1, marks.end(), positions_);
}

std::vector<Caches::Part> Caches::states() const {
  std::vector<Part> found;
  for (size_t i = 0; i < states_.size(); ++i) {
    const StateShape& shape = state_shapes_[i % state_shapes_.size()];
    found.push_back({states_[i].tail, 4 * shape.tail});
    if (shape.memory) found.push_back({states_[i].memory, 4 * shape.memory});
  }
  return found;
}

std::vector<Caches::Part> Caches::buffers() const {
  std::vector<Part> found;
  auto add = [&](const KVCache& cache, const CacheBuffer& buffer, int64_t heads, int64_t dims) {
    const Sizes size = sizes(heads * cache.capacity, dims, cache.type);
    found.push_back({buffer.values, size.values});
    if (buffer.scales) found.push_back({buffer.scales, size.scales});
  };
  for (size_t i = 0; i < shapes_.size(); ++i) {
    const KVCache& cache = layers_[i];
    add(cache, cache.keys, shapes_[i].kv_heads, shapes_[i].key_dim);
    if (shapes_[i].value_dim) add(cache, cache.values, shapes_[i].kv_heads, shapes_[i].value_dim);
  }
  return found;
}

Vector::Vector(const std::optional<mx::array>& values) : values_(values) {
  if (!values_) return;
  values_->eval();
  if (values_->dtype() != mx::float32 || !values_->flags().row_contiguous)
    throw std::invalid_argument("a layer's vector must be contiguous float32");
}

void Stack::add(const Layer& layer, const std::vector<Weight>& weights,
                const std::vector<Vector>& vectors, Place base, Place to, int lender) {
  all_->layers.push_back({layer, base, to, lender});
  all_->weights.insert(all_->weights.end(), weights.begin(), weights.end());
  all_->vectors.insert(all_->vectors.end(), vectors.begin(), vectors.end());
}

int64_t Stack::bytes() const {
  int64_t sum = 0;
  for (const Weight& weight : all_->weights)
    sum += weight.experts * weight.rows * row_bytes(weight.type, weight.cols);
  return sum;
}

double Stack::done() const {
  return static_cast<double>(all_->done) / static_cast<double>(all_->layers.size());
}

Caches Stack::new_caches(int64_t capacity, CacheType type, int64_t rewind, int64_t slack) const {
  std::vector<CacheShape> shapes;
  std::vector<StateShape> states;
  for (const Entry& entry : all_->layers) {
    if (const auto* attention = std::get_if<AttentionLayer>(&entry.layer)) {
      if (entry.lender >= 0) continue;
      const int64_t window = attention->window;
      shapes.push_back({attention->kv_heads, attention->key_dim, attention->value_dim, window,
                        window ? std::min(capacity, window + slack) : capacity});
    } else if (const auto* latent = std::get_if<LatentLayer>(&entry.layer)) {
      shapes.push_back({1, latent->kv_a.rows, latent->indexer.k.rows, 0, capacity});
    } else if (const auto* recurrent = std::get_if<RecurrentLayer>(&entry.layer)) {
      states.push_back({recurrent->tail_values(), recurrent->state_values()});
    } else if (const auto* conv = std::get_if<ConvLayer>(&entry.layer)) {
      states.push_back({conv->tail_values(), 0});
    }
  }
  return Caches(shapes, states, capacity, type, rewind);
}

mx::array Stack::run(const mx::array& x, Caches* caches, int64_t offset,
                     const std::optional<mx::array>& embedded) const {
  return launch_all(x, caches, offset, embedded, std::nullopt)[0];
}

std::pair<mx::array, mx::array> Stack::run_with_routes(
    const mx::array& x, Caches* caches, int64_t offset,
    const std::optional<mx::array>& embedded) const {
  int routed = 0, used = 0;
  for (const Entry& entry : all_->layers)
    if (const auto* experts = std::get_if<ExpertLayer>(&entry.layer))
      ++routed, used = static_cast<int>(experts->routing.used);
  const auto made =
      launch_all(x, caches, offset, embedded, Output{{routed, x.shape(0), used}, mx::int32});
  return {made[0], made.back()};
}

namespace {

// The layer with the rotary embedding for a context.
AttentionLayer for_context(const AttentionLayer& layer, int64_t context) {
  AttentionLayer made = layer;
  if (layer.long_rope.dims && context > layer.long_from) made.rope = layer.long_rope;
  return made;
}

bool has_cache(const Stack::Layer& layer) {
  return std::holds_alternative<AttentionLayer>(layer) ||
         std::holds_alternative<LatentLayer>(layer);
}

// One run of a stack's layers: called with each of them in turn.
struct Run {
  Workspace& work;
  const std::optional<Caches::Step>& caches;
  int64_t offset, tokens, width;
  int64_t context;    // tokens that the caches are made for
  const float* from;  // the stream: the input, then y
  float* y;
  float* aside;
  Given embedded;
  int32_t* chosen;  // null: not recorded
  Pool& pool = Pool::shared();
  Place base_at = Place::Stream, to = Place::Stream;  // of the current layer
  int lender = -1;
  size_t caches_used = 0, states_used = 0;

  void operator()(const AttentionLayer& layer) {
    attention_block(for_context(layer, context), cache(), offset, from, tokens, target(), work,
                    pool, base());
  }
  void operator()(const LatentLayer& layer) {
    latent_block(layer, cache(), offset, from, tokens, y, work, pool);
  }
  void operator()(const RecurrentLayer& layer) {
    recurrent_block(layer, states(), from, tokens, y, work, pool);
  }
  void operator()(const ConvLayer& layer) {
    conv_block(layer, states(), from, tokens, y, work, pool);
  }
  void operator()(const DenseLayer& layer) {
    dense_block(layer, from, tokens, target(), work, pool, base(), embedded);
  }
  void operator()(const ExpertLayer& layer) {
    moe_block(layer, from, tokens, target(), work, pool, chosen, base());
    if (chosen) chosen += tokens * layer.routing.used;
  }
  void operator()(const EndLayer& layer) {
    end_block(layer, from, aside, tokens, width, y, work, pool);
  }

  float* target() const { return to == Place::Stream ? y : aside; }
  const float* base() const {
    if (base_at == Place::Nothing) std::fill(aside, aside + tokens * width, 0.0f);
    return base_at == Place::Stream ? from : aside;
  }
  const KVCache* cache() {
    if (!caches) return nullptr;
    if (lender >= 0) return &caches->layers[static_cast<size_t>(lender)];
    caches->make_room(caches_used, offset);
    return &caches->layers[caches_used++];
  }
  RecurrentStates states() { return caches ? caches->recurrent(states_used++) : RecurrentStates{}; }
};

}  // namespace

std::vector<mx::array> Stack::launch_all(const mx::array& x, Caches* caches, int64_t offset,
                                         const std::optional<mx::array>& embedded,
                                         const std::optional<Output>& routes) const {
  const int64_t tokens = x.shape(0), width = x.shape(1);
  all_->done = 0;
  std::vector<mx::array> inputs{x};
  if (embedded) inputs.push_back(*embedded);
  if (caches && caches->ticket) inputs.push_back(*caches->ticket);
  std::optional<Caches::Step> held;
  if (caches) held = caches->step(offset, tokens);
  const int64_t context = caches ? caches->capacity() : offset + tokens;
  const int64_t columns = embedded ? embedded->shape(1) : 0;
  const bool prompt = prompt_step();
  auto body = [all = all_, held, tokens, width, offset, context, columns, prompt](
                  const Sources& in, const Targets& out) {
    Shared& tools = shared();
    const std::lock_guard<std::mutex> lock(tools.mutex);
    tools.work.prompt = prompt;
    *static_cast<uint8_t*>(out[1]) = 0;
    const auto sums_aside = [](const Entry& entry) { return entry.to == Place::Aside; };
    const bool any = std::any_of(all->layers.begin(), all->layers.end(), sums_aside);
    std::vector<float> aside(static_cast<size_t>(any ? tokens * width : 0));
    Run run{.work = tools.work,
            .caches = held,
            .offset = offset,
            .tokens = tokens,
            .width = width,
            .context = context,
            .from = static_cast<const float*>(in[0]),
            .y = static_cast<float*>(out[0]),
            .aside = aside.data(),
            .embedded = {columns ? static_cast<const float*>(in[1]) : nullptr, columns},
            .chosen = out.size() > 2 ? static_cast<int32_t*>(out[2]) : nullptr};
    all->done = 0;
    for (const Entry& entry : all->layers) {
      run.base_at = entry.base, run.to = entry.to, run.lender = entry.lender;
      if (all->cancelled) {  // but keep the caches consistent
        if (has_cache(entry.layer)) run.cache();
        continue;
      }
      std::visit(run, entry.layer);
      all->done.fetch_add(1, std::memory_order_relaxed);
      if (entry.to == Place::Stream) run.from = run.y;  // the next layers run in place
    }
  };
  std::vector<Output> outputs{{x.shape(), mx::float32}, {{1}, mx::uint8}};
  if (routes) outputs.push_back(*routes);
  auto made = launch("Layers", std::move(inputs), outputs, std::move(body));
  if (caches) caches->ticket = made[1];
  return made;
}

mx::array latent_attention_task(const mx::array& q, const mx::array& rows,
                                const std::optional<mx::array>& scales, int64_t value_dim) {
  LatentCall call{};
  call.type = scales                        ? CacheType::Q8
              : rows.dtype() == mx::float16 ? CacheType::F16
                                            : CacheType::F32;
  call.tokens = q.shape(0), call.heads = q.shape(1), call.key_dim = q.shape(2);
  call.length = rows.shape(0), call.value_dim = value_dim;
  call.decodes = call.tokens == 1 && !prompt_step();
  std::vector<mx::array> inputs{q, rows};
  if (scales) inputs.push_back(*scales);
  return launch("LatentAttention", std::move(inputs),
                {q.shape(0), q.shape(1), static_cast<int>(value_dim)},
                [call](const Sources& in, const Targets& out) mutable {
                  Shared& tools = shared();
                  const std::lock_guard<std::mutex> lock(tools.mutex);
                  call.queries = static_cast<const float*>(in[0]);
                  call.rows = in[1];
                  call.scales = in.size() > 2 ? static_cast<const uint16_t*>(in[2]) : nullptr;
                  call.out = static_cast<float*>(out[0]);
                  latent_attention(call, tools.work, Pool::shared());
                });
}

HeadLayer::HeadLayer(const Norm& norm, const std::vector<Vector>& vectors, const Weight& output)
    : vectors_(vectors), output_(output), head_{norm, output_.matrix()} {}

mx::array HeadLayer::run(const mx::array& x) const {
  const int64_t tokens = x.shape(0);
  return launch("Head", {x}, {x.shape(0), static_cast<int>(output_.rows)},
                [kept = *this, tokens](const Sources& in, const Targets& out) {
                  Shared& tools = shared();
                  const std::lock_guard<std::mutex> lock(tools.mutex);
                  head_block(kept.head_, static_cast<const float*>(in[0]), tokens,
                             static_cast<float*>(out[0]), tools.work, Pool::shared());
                });
}

}  // namespace conifer
