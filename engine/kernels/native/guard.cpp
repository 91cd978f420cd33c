// The SIGBUS handler. It only uses atomics and system calls.
#include "guard.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>

namespace conifer {

namespace {

constexpr int MOST = 256;  // parts of all loaded models

// `end` is written last and cleared first. 0 marks a free entry.
struct Watched {
  std::atomic<uintptr_t> begin{0}, end{0};
  std::atomic<bool> lost{false};
};

Watched all[MOST];
std::mutex mutex;
struct sigaction before;  // for addresses that are not watched
uintptr_t page_bytes;

void pass_on(int signal, siginfo_t* info, void* context) {
  if (before.sa_flags & SA_SIGINFO) return before.sa_sigaction(signal, info, context);
  if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
    return before.sa_handler(signal);
  sigaction(SIGBUS, &before, nullptr);  // the repeated access then ends the program
}

void on_lost_page(int signal, siginfo_t* info, void* context) {
  const int error = errno;
  const auto at = reinterpret_cast<uintptr_t>(info->si_addr);
  for (Watched& one : all) {
    const uintptr_t end = one.end.load(std::memory_order_acquire);
    if (at < one.begin.load(std::memory_order_relaxed) || at >= end) continue;
    one.lost.store(true, std::memory_order_release);
    void* page = reinterpret_cast<void*>(at / page_bytes * page_bytes);
    const size_t rest = end - at / page_bytes * page_bytes;
    // Replace the rest as well: a shrunken file lost all of it, and mappings are limited.
    if (mmap(page, rest, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED) {
      errno = error;
      return;
    }
  }
  errno = error;
  pass_on(signal, info, context);
}

bool install() {
  page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  struct sigaction ours = {}, now;
  ours.sa_sigaction = on_lost_page;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  if (sigaction(SIGBUS, nullptr, &now) != 0) return false;
  if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_lost_page) return true;
  before = now;
  return sigaction(SIGBUS, &ours, nullptr) == 0;
}

}  // namespace

int watch(const void* start, size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!install()) return -1;
  for (int i = 0; i < MOST; ++i) {
    if (all[i].end.load(std::memory_order_relaxed) != 0) continue;
    all[i].lost = false;
    all[i].begin = reinterpret_cast<uintptr_t>(start);
    all[i].end.store(reinterpret_cast<uintptr_t>(start) + bytes, std::memory_order_release);
    return i;
  }
  return -1;
}

bool lost(int watched) { return all[watched].lost.load(std::memory_order_acquire); }

void unwatch(int watched) {
  const std::lock_guard<std::mutex> lock(mutex);
  all[watched].end = 0;
}

}  // namespace conifer
