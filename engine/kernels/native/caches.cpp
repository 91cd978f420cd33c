// The caches of a stack's layers.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "layers.h"

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

}  // namespace conifer
