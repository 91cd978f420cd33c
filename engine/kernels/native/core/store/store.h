// The experts of a model that does not fit in memory. They stay in the file; the store holds those
// used last, for all layers together, and reads the others when they are chosen.
//
// One call at a time, inside a parallel region: one thread calls `choose` (a token) or `plan` (a
// prompt), then after a barrier all threads call `each_chosen` or `each_planned`, and after the
// region one thread calls `finish`. `stop` may be called at any time.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "store/reader.h"

namespace conifer::store {

// An expert's matrices. GATE is also gate and up in one matrix. Sets of them are bits.
enum Part : int { GATE = 0, UP = 1, DOWN = 2, PARTS = 3 };
constexpr unsigned INPUTS = 1u << GATE | 1u << UP, OUTPUT = 1u << DOWN;

using Addresses = std::array<const uint8_t*, PARTS>;

struct Place {
  int file;
  int64_t offset;
};

// One projection of a layer's experts. bytes: of one expert; 0: there is none.
struct Source {
  int64_t bytes = 0;
  std::vector<Place> places;
};

struct LayerSource {
  std::array<Source, PARTS> parts;
  int kind = 0;  // of its slots
};

// Slots for the experts of some layers. bytes: whole pages.
struct SlotKind {
  int64_t bytes, count;
};

// window, window_bytes: the buffers through which a prompt's experts pass, and the size of each.
struct Shape {
  std::vector<std::string> files;
  std::vector<LayerSource> layers;
  std::vector<SlotKind> kinds;
  int window = 0;
  int64_t window_bytes = 0;
  int readers = 8;
};

// hits, misses: choices of decoded tokens. distances: how many of a layer's other experts were
// chosen since an expert's last choice; the last count is of first choices. Times are those in
// which the first thread waited.
struct Stats {
  int64_t hits = 0, misses = 0, bytes_read = 0, prompt_bytes_read = 0, wait_ns = 0,
          prompt_wait_ns = 0;
  std::vector<int64_t> distances;
};

class ExpertStore {
 public:
  // Each kind needs a slot for each expert that a token uses in a layer.
  explicit ExpertStore(const Shape& shape);
  ~ExpertStore();
  ExpertStore(const ExpertStore&) = delete;
  ExpertStore& operator=(const ExpertStore&) = delete;

  // Find n different experts of a layer, for one token, and begin to read the missing ones.
  void choose(int layer, const int32_t* ids, int64_t n, bool counted = true);
  // True if all of them were in memory.
  bool all_here() const { return missing_.empty(); }
  Addresses chosen(int64_t j) const;

  // Call f(j, addresses) for each choice once these parts of it are in memory: first those that
  // were, then the others as they arrive. Returns false if stopped before that.
  template <class F>
  bool each_chosen(unsigned parts, int thread, F&& f) {
    for (const int j : here_) f(j, chosen(j));
    std::vector<int> left = missing_;
    while (!left.empty()) {
      size_t next = 0;
      const auto ready = [&] {
        for (next = 0; next < left.size(); ++next)
          if (arrived(left[next], parts)) return true;
        return false;
      };
      if (!readers_.wait(ready, thread == 0 ? &wait_ns_ : nullptr)) return false;
      f(left[next], chosen(left[next]));
      left.erase(left.begin() + int64_t(next));
    }
    return !readers_.stopped();
  }

  // Use n experts of a layer, in this order, for a prompt: these parts of all of them, then those
  // of the next stage. last: when each was chosen last. They pass through the window, unless they
  // are in memory or the layer has unused slots, which the latest fill.
  void plan(int layer, const int32_t* experts, const int32_t* last, int64_t n,
            const std::vector<unsigned>& stages, int threads);

  // Call f(i, addresses) for each planned expert, in order. Every thread must do this for every
  // stage. Returns false if stopped.
  template <class F>
  bool each_planned(int stage, int thread, F&& f) {
    for (size_t i = 0; i < planned_.size(); ++i) {
      const int64_t ticket = ticket_of(stage, i);
      if (!readers_.wait([&] { return came(stage, i, ticket); },
                         thread == 0 ? &prompt_wait_ns_ : nullptr))
        return false;
      f(int64_t(i), planned(stage, i, ticket));
      if (ticket >= 0) release(ticket);
    }
    return true;
  }

  void finish();

  // The part of this layer's experts that comes first.
  int first_part(int layer) const {
    return shape_.layers[size_t(layer)].parts[GATE].bytes ? GATE : UP;
  }

  void stop() { readers_.stop(); }
  // After `stop` or a failure, and when no call runs.
  void resume() { readers_.resume(); }
  bool stopped() const { return readers_.stopped(); }
  Failure failure() const { return readers_.failure(); }

  // Steps that use the store, numbered from 1. `wait_run` returns false after `seconds`.
  int64_t begin_run() { return ++begun_; }
  int64_t begun() const { return begun_; }
  void end_run(int64_t number);
  bool wait_run(int64_t number, double seconds);

  int64_t held_bytes() const;  // of the slots in use
  int64_t held() const;        // slots in use
  Stats stats() const;
  void replace_reader(ReadAt read_at) { readers_.replace(std::move(read_at)); }

 private:
  using Counts = std::array<std::atomic<int>, PARTS>;  // reads that each part still needs

  struct Slot {
    uint8_t* data = nullptr;
    Counts left{};
    int layer = -1, expert = -1;
    uint64_t used_by = 0;  // the call that used it last
    std::list<Slot*>::iterator place;
  };
  struct Buffer {
    uint8_t* data = nullptr;
    Counts left{};
    std::atomic<int64_t> ticket{-1};
    std::atomic<int> released{0};
  };
  struct Memory;  // what reads write to

  // ordinal: among the planned experts that must be read; -1: it is in its slot.
  struct Planned {
    int expert;
    Slot* slot;
    int64_t ordinal;
  };

  Slot*& at(int layer, int expert);
  Slot* take(int layer, int expert);  // null: stopped
  void forget(Slot* slot);
  void touch(Slot* slot);
  void read(int layer, int expert, int part, uint8_t* data, Counts& left, std::vector<Read>& reads);
  Addresses addresses(int layer, int expert, const uint8_t* data, unsigned parts,
                      bool in_slot) const;
  bool arrived(int j, unsigned parts) const;
  static bool complete(const Counts& left, unsigned parts);

  int64_t ticket_of(int stage, size_t i) const;
  bool came(int stage, size_t i, int64_t ticket) const;
  Addresses planned(int stage, size_t i, int64_t ticket) const;
  void post(int64_t ticket);
  void release(int64_t ticket);
  void record(int layer, const int32_t* ids, int64_t n);
  void fill(int layer, const int32_t* last);

  Shape shape_;
  std::vector<std::array<int64_t, PARTS>> starts_;  // of each layer's parts in a slot
  std::shared_ptr<Memory> memory_;
  std::vector<std::list<Slot*>> order_;  // of each kind's slots, the one used last first
  std::vector<std::vector<Slot*>> slots_of_;
  std::vector<int64_t> held_of_, layers_of_;  // experts held of each layer; layers of each kind
  uint64_t call_ = 0;

  int layer_ = 0;  // of the current call
  std::vector<Slot*> chosen_;
  std::vector<int> here_, missing_;
  std::vector<Planned> planned_;
  std::vector<size_t> unread_;  // indices of the planned experts that must be read
  std::vector<unsigned> stages_;
  int threads_ = 1;

  std::atomic<int64_t> hits_{0}, misses_{0}, prompt_bytes_{0}, wait_ns_{0}, prompt_wait_ns_{0};
  std::atomic<int64_t> held_count_{0}, held_bytes_{0};
  std::vector<std::vector<int32_t>> recent_;  // each layer's experts, the one chosen last first
  std::vector<std::atomic<int64_t>> distances_;
  std::atomic<int64_t> begun_{0};
  std::mutex runs_;
  std::condition_variable run_ended_;
  int64_t ended_ = 0;
  Readers readers_;
};

}  // namespace conifer::store
