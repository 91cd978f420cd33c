// Workspace's scratch memory: grow-only buffers, some shared and some per thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "blocks/block.h"

namespace conifer::blocks {

// Uninitialised floats on their own cache lines. Growing discards the contents.
class Floats {
 public:
  float* need(int64_t count) {
    if (count > capacity_) {
      memory_.reset();
      memory_.reset(static_cast<float*>(operator new(size_t(count) * 4, LINE)));
      capacity_ = count;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t LINE{64};
  struct Free {
    void operator()(float* p) const { operator delete(p, LINE); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t capacity_ = 0;
};

// Divides the rows of one product for a single token: most of them evenly, the rest first come,
// first served. Threads run at different speeds, because one may share its core with the
// interpreter or with another tenant of the machine.
class RowSharing {
 public:
  // Call fn(Range) for this thread's share of n rows. Every thread must pass the same n.
  template <class F>
  void share_out(int64_t n, int thread, int threads, F&& fn) {
    if (threads == 1) return fn(Range{0, n});
    const int64_t even = n * 3 / 4 / GRAIN * GRAIN;
    const Range mine = share(even, thread, threads, GRAIN);
    if (mine.begin < mine.end) fn(mine);
    for (;;) {
      const int64_t begin = even + next_.fetch_add(GRAIN, std::memory_order_relaxed);
      if (begin >= n) return;
      fn(Range{begin, begin + GRAIN < n ? begin + GRAIN : n});
    }
  }

 private:
  static constexpr int64_t GRAIN =
      64;  // whole groups of four rows, as in the kernels, so sums never vary
  alignas(64) std::atomic<int64_t> next_{0};
};

// Rows of w for every token of x: y[t * w.rows + r].
inline void multiply_rows(const Matrix& w, const Activations& x, float* y, Range rows) {
  gemm::matmul_rows(w, x, x.kind(), int64_t{0}, x.tokens(), y, w.rows, rows.begin, rows.end);
}

struct Workspace::Parts {
  // Per thread. One token's activations are small, so a copy for each thread costs less than a
  // barrier.
  struct Thread {
    Activations input, hidden, shared;
    Floats normed, mixed, queries, scratch, out, weights;
    std::vector<attention::Sight> sights;
    std::vector<int32_t> ids;
    std::vector<attention::Partial> partials;
  };

  std::vector<std::unique_ptr<Thread>> threads;
  Activations input, hidden, shared_input, shared_hidden, queries, latents;
  Floats normed, projected, mixed, partials, gate, up, logits, weights, keys, values, shared,
      shared_up, shared_weights, absorbed, convolved, decays, factors, nothing;
  Floats index_queries, index_keys, index_weights, index_scores, keys_alone, rows, row_scales;
  std::vector<int32_t> seen, ranked;       // tokens that an indexer chose (T, top); scratch
  std::vector<int32_t> chosen;             // (T, k) expert ids
  std::vector<int32_t> ids, slots, first;  // tokens and choices, grouped by expert
  std::vector<int32_t> planned, last;      // the chosen experts, and the last token of each
  Rotations rotations;

  void need_threads(int count) {
    while (int(threads.size()) < count) threads.push_back(std::make_unique<Thread>());
  }
};

}  // namespace conifer::blocks
