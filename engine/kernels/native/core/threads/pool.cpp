// Waiting threads first spin on a word in memory, then sleep on a condition variable.
#include "threads/pool.h"

#include <algorithm>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace conifer::threads {

namespace {

// Sleeping and waking takes 50 us or more on a virtual machine. Within a region, the other threads
// are working and finish soon unless they lose their cores. Between a token's regions, the
// interpreter may run for about 0.2 ms.
constexpr auto SPIN_IN_REGION = std::chrono::milliseconds(5);
constexpr auto SPIN_BETWEEN = std::chrono::microseconds(500);
// After this, every check yields the core, because another thread may need it to finish.
constexpr auto SPIN_ALONE = std::chrono::microseconds(30);
constexpr int SPINS_PER_LOOK = 32;  // pauses between clock readings

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // `yield` is a no-op on most cores
#endif
}

}  // namespace

Pool& Pool::shared() {
  // Never destroyed: the caller's streams may outlive this library's static objects.
  static Pool* pool = new Pool(1);
  return *pool;
}

void Pool::set_threads(int threads) {
  const std::lock_guard<std::mutex> turn(turn_);
  threads = std::max(threads, 1);
  if (threads == threads_) return;
  if (!workers_.empty()) {
    stopping_ = true;
    change(regions_);
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    stopping_ = false;
  }
  threads_ = threads;
  const uint32_t seen = regions_.load();
  for (int thread = 1; thread < threads; ++thread)
    workers_.emplace_back([this, thread, seen] { work(thread, seen); });
}

void Pool::start(Job job, void* context) {
  job_ = job;
  context_ = context;
  change(regions_);
}

void Pool::work(int thread, uint32_t seen) {
  for (;;) {
    await_change(regions_, seen, SPIN_BETWEEN);
    ++seen;
    if (stopping_) return;
    job_(context_, thread, threads_);
    barrier();
  }
}

void Pool::barrier() {
  if (threads_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == uint32_t(threads_)) {
    arrived_.store(0, std::memory_order_relaxed);
    change(phase_);
  } else {
    await_change(phase_, phase, SPIN_IN_REGION);
  }
}

void Pool::await_change(const std::atomic<uint32_t>& word, uint32_t old,
                        std::chrono::microseconds spin) {
  const auto start = std::chrono::steady_clock::now();
  for (auto now = start; now < start + spin; now = std::chrono::steady_clock::now()) {
    for (int i = 0; i < SPINS_PER_LOOK; ++i) {
      if (word.load(std::memory_order_acquire) != old) return;
      pause();
    }
    if (now > start + SPIN_ALONE) std::this_thread::yield();
  }
  std::unique_lock<std::mutex> lock(sleep_);
  ++sleepers_;  // before the last check of the word; change() checks in reverse order
  wake_.wait(lock, [&] { return word.load() != old; });
  --sleepers_;
}

void Pool::change(std::atomic<uint32_t>& word) {
  word.fetch_add(1);
  if (sleepers_.load() == 0) return;
  {
    const std::lock_guard<std::mutex> lock(sleep_);
  }  // a thread that checked before this is now waiting
  wake_.notify_all();
}

}  // namespace conifer::threads
