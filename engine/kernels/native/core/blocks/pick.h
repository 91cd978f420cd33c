// Logits to a token. engine/sampling.py says what the settings mean, and does the same in MLX.
#pragma once

#include <cstdint>

namespace conifer::blocks {

struct Drawing {
  float temperature;  // 0 is greedy
  int64_t top_k;      // 0 is all
  float top_p, min_p;
};

constexpr int32_t NOT_FINITE = -1;

// Draw one of n logits, or NOT_FINITE where one is not. uniform, 0 <= uniform < 1: which one.
int32_t pick(const float* logits, int64_t n, const Drawing& how, double uniform);

}  // namespace conifer::blocks
