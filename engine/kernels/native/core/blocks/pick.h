// Sample a token from logits. engine/sampling.py documents the settings and does the same in MLX.
#pragma once

#include <cstdint>

namespace conifer::blocks {

struct Drawing {
  float temperature;  // 0: greedy
  int64_t top_k;      // 0: all
  float top_p, min_p;
};

constexpr int32_t NOT_FINITE = -1;

// Sample the index of one of n logits. Returns NOT_FINITE if any logit is not finite. uniform: a
// random number, 0 <= uniform < 1.
int32_t pick(const float* logits, int64_t n, const Drawing& how, double uniform);

}  // namespace conifer::blocks
