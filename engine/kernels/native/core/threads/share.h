// How rows are divided among threads.
#pragma once

#include <cstdint>

namespace conifer::threads {

struct Range {
  int64_t begin, end;
};

constexpr int64_t ROW_GRAIN = 32;

// Return a thread's share of n rows, in whole panels of `grain` rows.
static constexpr Range share(int64_t n, int thread, int count, int64_t grain = ROW_GRAIN) {
  const int64_t grains = (n + grain - 1) / grain;
  const int64_t begin = grains * thread / count * grain;
  const int64_t end = grains * (thread + 1) / count * grain;
  return {begin < n ? begin : n, end < n ? end : n};
}

}  // namespace conifer::threads
