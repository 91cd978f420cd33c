// The thread pool. A region runs a function on every thread at once, including the caller's. Inside
// a region, barrier() waits for all threads. Idle workers spin briefly before they sleep, because a
// decode step's next region follows within microseconds.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace conifer::threads {

class Pool {
 public:
  explicit Pool(int threads = 1) { set_threads(threads); }
  ~Pool() { set_threads(1); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // This process's pool. It starts with one thread, the caller's.
  static Pool& shared();

  // Includes the caller's thread. Must not be called inside a region.
  void set_threads(int threads);
  int threads() const { return threads_; }

  // Call fn(int thread, int threads) on every thread and return when all are done. `fn` must not
  // throw, and must not call run(). Calls from several threads take turns.
  template <class F>
  void run(F&& fn) {
    using Function = std::remove_reference_t<F>;
    const std::lock_guard<std::mutex> turn(turn_);
    if (threads_ == 1) {
      fn(0, 1);
      return;
    }
    start([](void* context, int thread,
             int threads) { (*static_cast<Function*>(context))(thread, threads); },
          const_cast<void*>(static_cast<const void*>(&fn)));
    fn(0, threads_);
    barrier();
  }

  // Inside a region, wait for every thread to arrive. Their writes are then visible.
  void barrier();

 private:
  using Job = void (*)(void* context, int thread, int threads);

  void start(Job job, void* context);
  void work(int thread, uint32_t seen);
  void await_change(const std::atomic<uint32_t>& word, uint32_t old,
                    std::chrono::microseconds spin);
  void change(std::atomic<uint32_t>& word);

  int threads_ = 1;
  std::vector<std::thread> workers_;
  std::mutex turn_;  // locked by the caller during a region
  Job job_ = nullptr;
  void* context_ = nullptr;
  bool stopping_ = false;

  alignas(64) std::atomic<uint32_t> regions_{0};  // changes when a region starts
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};  // changes when a barrier opens
  alignas(64) std::atomic<int> sleepers_{0};
  std::mutex sleep_;
  std::condition_variable wake_;
};

}  // namespace conifer::threads
