// Tests the thread pool: barriers wait for every thread, and concurrent regions take turns.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "threads/pool.h"

using namespace conifer::threads;

namespace {

int checks = 0, failures = 0;

void expect(bool good, const std::string& what) {
  ++checks;
  if (good) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

void test_pool() {
  Pool pool(3);
  for (int threads : {3, 1, 2, 5, 3}) {
    pool.set_threads(threads);
    std::vector<int64_t> sums(size_t(threads), 0);
    bool even = true;
    for (int round = 0; round < 300; ++round) {
      if (round % 100 == 50) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      pool.run([&](int thread, int count) {
        for (int step = 0; step < 5; ++step) {
          ++sums[size_t(thread)];
          pool.barrier();
          for (int64_t sum : sums)
            if (sum != sums[0] || count != threads) even = false;
          pool.barrier();
        }
      });
    }
    expect(even && sums[0] == 1500, "pool of " + std::to_string(threads));
  }
  std::atomic<int> calls{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i)
    callers.emplace_back([&] {
      for (int round = 0; round < 100; ++round) pool.run([&](int, int) { ++calls; });
    });
  for (std::thread& caller : callers) caller.join();
  expect(calls == 900, "pool: several callers");
}

}  // namespace

int main() {
  test_pool();
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures ? 1 : 0;
}
