// Runs a test on every instruction set that this processor supports.
#pragma once

#include <cstdio>
#include <string>

#include "isa/isa.h"
#include "threads/pool.h"

namespace conifer::tests {
namespace {

int failures = 0;
int checks = 0;

inline void expect(bool good, const std::string& what) {
  ++checks;
  if (good) return;
  ++failures;
  std::printf("FAIL %s\n", what.c_str());
}

// Call test() with each instruction set in use.
template <class F>
void for_each_isa(F&& test) {
  for (isa::Isa isa : isa::ALL) {
    if (!isa::supported(isa)) continue;
    isa::force(isa);
    test();
  }
}

// Call test(Pool&) with each instruction set and 1, 2 and 3 threads. Returns the exit status for
// main(): 1 if a check failed, else 0.
template <class F>
int run_everywhere(F&& test) {
  for_each_isa([&] {
    const int before = failures;
    for (int threads : {1, 2, 3}) {
      threads::Pool pool(threads);
      test(pool);
    }
    std::printf("%s: %s\n", isa::name(isa::current()), failures == before ? "ok" : "failed");
  });
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures ? 1 : 0;
}

}  // namespace
}  // namespace conifer::tests
