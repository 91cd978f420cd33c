// The least recently used expert makes room for the next one.
#include "store/store.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <new>
#include <numeric>
#include <stdexcept>

namespace conifer::store {

namespace {

constexpr int64_t MAX_READ = 1 << 20;  // bytes; larger matrices are several reads

// The largest number of whole pages that contain a part of one of the experts.
int64_t span(const Source& source) {
  int64_t most = 0;
  for (const Place& place : source.places)
    most = std::max(most, page_end(place.offset + source.bytes) - page_start(place.offset));
  return most;
}

}  // namespace

struct ExpertStore::Memory {
  explicit Memory(size_t bytes) : bytes(bytes) {
    data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(data, bytes, MADV_HUGEPAGE);
#endif
  }
  ~Memory() { munmap(data, bytes); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* data;
  size_t bytes;
  std::deque<File> files;
  std::deque<Slot> slots;
  std::deque<Buffer> buffers;
  std::vector<Slot*> table;  // (layers, experts)
};

ExpertStore::ExpertStore(const Shape& shape)
    : shape_(shape),
      order_(shape.kinds.size()),
      held_of_(shape.layers.size(), 0),
      layers_of_(shape.kinds.size(), 0),
      recent_(shape.layers.size()),
      readers_(shape.readers) {
  int64_t bytes = shape.window * shape.window_bytes;
  for (const SlotKind& kind : shape.kinds) bytes += kind.bytes * kind.count;
  memory_ = std::make_shared<Memory>(size_t(bytes));
  auto* at = static_cast<uint8_t*>(memory_->data);
  for (const std::string& file : shape.files) memory_->files.emplace_back(file);
  for (size_t kind = 0; kind < shape.kinds.size(); ++kind)
    for (int64_t i = 0; i < shape.kinds[kind].count; ++i, at += shape.kinds[kind].bytes) {
      Slot& slot = memory_->slots.emplace_back();
      slot.data = at;
      order_[kind].push_front(&slot);
      slot.place = order_[kind].begin();
    }
  for (int i = 0; i < shape.window; ++i, at += shape.window_bytes)
    memory_->buffers.emplace_back().data = at;
  size_t most = 0;
  for (const LayerSource& layer : shape.layers) {
    std::array<int64_t, PARTS> starts{};
    int64_t end = 0;
    for (int part = 0; part < PARTS; ++part) {
      starts[size_t(part)] = end;
      end += span(layer.parts[size_t(part)]);
      most = std::max(most, layer.parts[size_t(part)].places.size());
    }
    if (end > shape.kinds.at(size_t(layer.kind)).bytes ||
        std::max(starts[DOWN], end - starts[DOWN]) > shape.window_bytes || shape.window < 1)
      throw std::invalid_argument("an expert is larger than its slot");
    starts_.push_back(starts);
    ++layers_of_[size_t(layer.kind)];
  }
  memory_->table.assign(shape.layers.size() * most, nullptr);
  distances_ = std::vector<std::atomic<int64_t>>(most + 1);
}

ExpertStore::~ExpertStore() { readers_.drop(); }

ExpertStore::Slot*& ExpertStore::at(int layer, int expert) {
  return memory_->table[size_t(layer) * (distances_.size() - 1) + size_t(expert)];
}

bool ExpertStore::complete(const Counts& left, unsigned parts) {
  for (size_t part = 0; part < PARTS; ++part)
    if (parts >> part & 1 && left[part].load(std::memory_order_acquire) > 0) return false;
  return true;
}

void ExpertStore::touch(Slot* slot) {
  std::list<Slot*>& order = order_[size_t(shape_.layers[size_t(layer_)].kind)];
  order.splice(order.begin(), order, slot->place);
  slot->used_by = call_;
}

void ExpertStore::forget(Slot* slot) {
  const LayerSource& source = shape_.layers[size_t(slot->layer)];
  at(slot->layer, slot->expert) = nullptr;
  --held_of_[size_t(slot->layer)];
  --held_count_;
  held_bytes_ -= shape_.kinds[size_t(source.kind)].bytes;
  slot->layer = slot->expert = -1;
  std::list<Slot*>& order = order_[size_t(source.kind)];
  order.splice(order.end(), order, slot->place);
}

// Reads that were stopped may still write to a slot, so it is not free before their end.
ExpertStore::Slot* ExpertStore::take(int layer, int expert) {
  const size_t kind = size_t(shape_.layers[size_t(layer)].kind);
  Slot* found = nullptr;
  const auto find = [&] {
    for (auto slot = order_[kind].rbegin(); slot != order_[kind].rend(); ++slot)
      if ((*slot)->used_by != call_ && complete((*slot)->left, INPUTS | OUTPUT)) {
        found = *slot;
        return true;
      }
    return false;
  };
  if (!readers_.wait(find, nullptr)) return nullptr;
  if (found->layer >= 0) forget(found);
  found->layer = layer, found->expert = expert;
  at(layer, expert) = found;
  ++held_of_[size_t(layer)];
  ++held_count_;
  held_bytes_ += shape_.kinds[kind].bytes;
  touch(found);
  return found;
}

void ExpertStore::read(int layer, int expert, int part, uint8_t* data, Counts& left,
                       std::vector<Read>& reads) {
  const Source& source = shape_.layers[size_t(layer)].parts[size_t(part)];
  if (source.bytes == 0) return;
  const Place& place = source.places[size_t(expert)];
  const int64_t begin = page_start(place.offset), needed = place.offset + source.bytes;
  const int64_t end = page_end(needed), pieces = (end - begin + MAX_READ - 1) / MAX_READ;
  const int64_t step = page_end((end - begin + pieces - 1) / pieces);
  int count = 0;
  for (int64_t at = begin; at < end; at += step, ++count)
    reads.push_back({&memory_->files[size_t(place.file)], data + (at - begin), at,
                     std::min(at + step, end), std::min(at + step, needed), &left[size_t(part)],
                     layer, expert, part, memory_});
  left[size_t(part)] = count;
}

Addresses ExpertStore::addresses(int layer, int expert, const uint8_t* data, unsigned parts,
                                 bool in_slot) const {
  Addresses found{};
  const auto& starts = starts_[size_t(layer)];
  for (int part = 0; part < PARTS; ++part) {
    const Source& source = shape_.layers[size_t(layer)].parts[size_t(part)];
    if (source.bytes == 0 || !(parts >> part & 1)) continue;
    const int64_t start = in_slot || part != DOWN ? starts[size_t(part)] : 0;
    found[size_t(part)] = data + start + source.places[size_t(expert)].offset % PAGE;
  }
  return found;
}

void ExpertStore::record(int layer, const int32_t* ids, int64_t n) {
  std::vector<int32_t>& recent = recent_[size_t(layer)];
  for (int64_t j = 0; j < n; ++j) {
    const auto found = std::find(recent.begin(), recent.end(), ids[j]);
    if (found == recent.end()) {
      ++distances_.back();
      recent.insert(recent.begin(), ids[j]);
    } else {
      ++distances_[size_t(found - recent.begin())];
      std::rotate(recent.begin(), found, found + 1);
    }
  }
}

void ExpertStore::choose(int layer, const int32_t* ids, int64_t n, bool counted) {
  layer_ = layer;
  ++call_;
  planned_.clear();
  chosen_.assign(size_t(n), nullptr);
  here_.clear();
  missing_.clear();
  if (counted) record(layer, ids, n);
  for (int64_t j = 0; j < n; ++j)
    if (Slot* slot = at(layer, ids[j])) {
      chosen_[size_t(j)] = slot;
      touch(slot);
      (complete(slot->left, INPUTS | OUTPUT) ? here_ : missing_).push_back(int(j));
    }
  std::vector<int> fresh;
  for (int64_t j = 0; j < n; ++j) {
    if (chosen_[size_t(j)]) continue;
    chosen_[size_t(j)] = take(layer, ids[j]);
    missing_.push_back(int(j));
    if (!chosen_[size_t(j)]) return;
    fresh.push_back(int(j));
  }
  if (counted) hits_ += n - int64_t(fresh.size()), misses_ += int64_t(fresh.size());
  std::vector<Read> reads;
  for (const int part : {GATE, UP, DOWN})
    for (const int j : fresh) {
      Slot& slot = *chosen_[size_t(j)];
      read(layer, slot.expert, part, slot.data + starts_[size_t(layer)][size_t(part)], slot.left,
           reads);
    }
  if (!reads.empty()) readers_.add(reads);
}

Addresses ExpertStore::chosen(int64_t j) const {
  const Slot& slot = *chosen_[size_t(j)];
  return addresses(layer_, slot.expert, slot.data, INPUTS | OUTPUT, true);
}

bool ExpertStore::arrived(int j, unsigned parts) const {
  const Slot* slot = chosen_[size_t(j)];  // null if `choose` was stopped
  return slot && complete(slot->left, parts);
}

// Give unused slots to the planned experts that were chosen last, the latest first to stay.
void ExpertStore::fill(int layer, const int32_t* last) {
  const size_t kind = size_t(shape_.layers[size_t(layer)].kind);
  const int64_t share = shape_.kinds[kind].count / layers_of_[kind];
  int64_t room = share - held_of_[size_t(layer)];
  std::vector<size_t> missing;
  for (size_t i = 0; i < planned_.size(); ++i)
    if (!planned_[i].slot) missing.push_back(i);
  std::sort(missing.begin(), missing.end(), [&](size_t a, size_t b) { return last[a] > last[b]; });
  missing.resize(size_t(std::clamp<int64_t>(room, 0, int64_t(missing.size()))));
  for (auto i = missing.rbegin(); i != missing.rend(); ++i) {
    const Slot* worst = order_[kind].back();
    if (worst->layer >= 0 || !complete(worst->left, INPUTS | OUTPUT)) return;
    planned_[*i].slot = take(layer, planned_[*i].expert);
    if (!planned_[*i].slot) return;
  }
}

void ExpertStore::plan(int layer, const int32_t* experts, const int32_t* last, int64_t n,
                       const std::vector<unsigned>& stages, int threads) {
  layer_ = layer;
  ++call_;
  chosen_.clear();
  planned_.clear();
  unread_.clear();
  stages_ = stages;
  threads_ = threads;
  for (int64_t i = 0; i < n; ++i) planned_.push_back({experts[i], at(layer, experts[i]), -1});
  std::vector<bool> here;
  for (const Planned& one : planned_) here.push_back(one.slot);
  if (stages.size() > 1) fill(layer, last);
  for (size_t i = 0; i < planned_.size(); ++i) {
    if (here[i]) continue;
    planned_[i].ordinal = int64_t(unread_.size());
    unread_.push_back(i);
  }
  const int64_t reads = int64_t(unread_.size() * stages_.size());
  for (Buffer& buffer : memory_->buffers) {
    buffer.ticket = -1;
    buffer.released = 0;
    // A read that was stopped may still write to it.
    if (!readers_.wait([&] { return complete(buffer.left, INPUTS | OUTPUT); }, nullptr)) return;
  }
  for (int64_t ticket = 0; ticket < std::min<int64_t>(reads, shape_.window); ++ticket) post(ticket);
}

int64_t ExpertStore::ticket_of(int stage, size_t i) const {
  const int64_t ordinal = planned_[i].ordinal;
  return ordinal < 0 ? -1 : stage * int64_t(unread_.size()) + ordinal;
}

void ExpertStore::post(int64_t ticket) {
  const Planned& one = planned_[unread_[size_t(ticket) % unread_.size()]];
  const unsigned parts = stages_[size_t(ticket) / unread_.size()];
  Buffer& buffer = memory_->buffers[size_t(ticket % shape_.window)];
  std::vector<Read> reads;
  for (const int part : {GATE, UP, DOWN}) {
    if (!(parts >> part & 1)) continue;
    const int64_t start = starts_[size_t(layer_)][size_t(part)];
    if (one.slot) read(layer_, one.expert, part, one.slot->data + start, one.slot->left, reads);
    else
      read(layer_, one.expert, part, buffer.data + (part == DOWN ? 0 : start), buffer.left, reads);
  }
  int64_t bytes = 0;
  for (const Read& read : reads) bytes += read.end - read.begin;
  prompt_bytes_ += bytes;
  buffer.ticket.store(ticket, std::memory_order_release);
  readers_.add(reads);
}

void ExpertStore::release(int64_t ticket) {
  Buffer& buffer = memory_->buffers[size_t(ticket % shape_.window)];
  if (buffer.released.fetch_add(1) + 1 < threads_) return;
  buffer.released = 0;
  if (ticket + shape_.window < int64_t(unread_.size() * stages_.size()) && !stopped())
    post(ticket + shape_.window);
}

bool ExpertStore::came(int stage, size_t i, int64_t ticket) const {
  const Planned& one = planned_[i];
  const unsigned parts = stages_[size_t(stage)];
  if (ticket < 0) return complete(one.slot->left, parts);
  const Buffer& buffer = memory_->buffers[size_t(ticket % shape_.window)];
  return buffer.ticket.load(std::memory_order_acquire) == ticket &&
         complete(one.slot ? one.slot->left : buffer.left, parts);
}

Addresses ExpertStore::planned(int stage, size_t i, int64_t ticket) const {
  const Planned& one = planned_[i];
  const unsigned parts = stages_[size_t(stage)];
  if (one.slot) return addresses(layer_, one.expert, one.slot->data, parts, true);
  const Buffer& buffer = memory_->buffers[size_t(ticket % shape_.window)];
  return addresses(layer_, one.expert, buffer.data, parts, false);
}

void ExpertStore::finish() {
  if (stopped()) {
    readers_.drop();
    for (const int j : missing_)
      if (Slot* slot = chosen_.empty() ? nullptr : chosen_[size_t(j)]) forget(slot);
    if (!planned_.empty())
      for (const size_t i : unread_)
        if (planned_[i].slot) forget(planned_[i].slot);
  }
  missing_.clear();
  chosen_.clear();
  planned_.clear();
  unread_.clear();
}

void ExpertStore::end_run(int64_t number) {
  {
    const std::lock_guard<std::mutex> lock(runs_);
    ended_ = std::max(ended_, number);
  }
  run_ended_.notify_all();
}

bool ExpertStore::wait_run(int64_t number, double seconds) {
  std::unique_lock<std::mutex> lock(runs_);
  return run_ended_.wait_for(lock, std::chrono::duration<double>(seconds),
                             [&] { return ended_ >= number; });
}

int64_t ExpertStore::held_bytes() const { return held_bytes_; }
int64_t ExpertStore::held() const { return held_count_; }

Stats ExpertStore::stats() const {
  Stats found{hits_, misses_, readers_.bytes_read(), prompt_bytes_, wait_ns_, prompt_wait_ns_, {}};
  found.distances.assign(distances_.begin(), distances_.end());
  return found;
}

}  // namespace conifer::store
