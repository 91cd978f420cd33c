// Choose a token's experts and their weights from the router's logits.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "blocks/block.h"

namespace conifer::blocks {

namespace {

constexpr float MIN_WEIGHT_SUM =
    6.103515625e-05f;                 // smallest normal float16, to avoid dividing by 0
constexpr float LEFT_OUT = -3.0e38f;  // below every valid score

// Rank experts outside the best groups last. A group's score is that of its best expert with
// softmax gating, and the sum for its best two experts otherwise.
void leave_out_groups(const Routing& routing, float* wanted) {
  const int64_t size = routing.experts / routing.groups;
  std::vector<std::pair<float, int64_t>> groups;
  for (int64_t g = 0; g < routing.groups; ++g) {
    float best = LEFT_OUT, second = LEFT_OUT;
    for (int64_t e = g * size; e < (g + 1) * size; ++e) {
      if (wanted[e] > best) second = best, best = wanted[e];
      else if (wanted[e] > second) second = wanted[e];
    }
    const bool two = routing.gating != Gating::Softmax && size > 1;
    groups.emplace_back(two ? best + second : best, g);
  }
  std::stable_sort(groups.begin(), groups.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  for (int64_t i = routing.groups_used; i < routing.groups; ++i)
    std::fill_n(wanted + groups[size_t(i)].second * size, size, LEFT_OUT);
}

// The sparse mixer: choose experts one by one. Its jitter is PhiMoE's, which no file stores.
void mix_sparsely(const Routing& routing, const float* logits, int32_t* ids, float* weights) {
  constexpr float JITTER = 0.01f;
  for (int64_t j = 0; j < routing.used; ++j) {
    const auto left = [&](int64_t e) { return std::find(ids, ids + j, int32_t(e)) == ids + j; };
    int64_t best = -1;
    for (int64_t e = 0; e < routing.experts; ++e)
      if (left(e) && (best < 0 || logits[e] > logits[best])) best = e;
    const float top = logits[best];
    float total = 0.0f;
    for (int64_t e = 0; e < routing.experts; ++e) {
      const bool far = (top - logits[e]) / std::max(std::abs(logits[e]), top) > 2 * JITTER;
      if (!far && left(e)) total += std::exp(logits[e] - top);
    }
    ids[j] = int32_t(best);
    weights[j] = routing.scale / total;
  }
}

// Compute the scores (E) that become weights. For SoftmaxOfChosen, these are the logits.
void score(const Routing& routing, const float* logits, float* scores) {
  const int64_t experts = routing.experts;
  if (routing.gating == Gating::SoftmaxOfChosen) {
    std::copy(logits, logits + experts, scores);
  } else if (routing.gating == Gating::Sigmoid) {
    for (int64_t e = 0; e < experts; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
  } else {
    const float top = *std::max_element(logits, logits + experts);
    float total = 0.0f;
    for (int64_t e = 0; e < experts; ++e) total += scores[e] = std::exp(logits[e] - top);
    for (int64_t e = 0; e < experts; ++e) scores[e] /= total;
  }
}

}  // namespace

void route(const Routing& routing, const float* logits, int32_t* ids, float* weights) {
  if (routing.gating == Gating::SparseMixer) return mix_sparsely(routing, logits, ids, weights);
  static thread_local std::vector<float> kept;
  const int64_t experts = routing.experts, used = routing.used;
  kept.resize(size_t(2 * experts));
  float* scores = kept.data();
  float* wanted = scores + experts;
  score(routing, logits, scores);
  // Use logits, because scores saturate. Both have the same order.
  const float* order = routing.bias || routing.groups > 1 ? scores : logits;
  for (int64_t e = 0; e < experts; ++e) wanted[e] = order[e] + (routing.bias ? routing.bias[e] : 0);
  if (routing.groups > 1) leave_out_groups(routing, wanted);
  int64_t held = 0;
  for (int64_t e = 0; e < experts; ++e) {  // insert into the sorted list of the best experts
    if (held == used && !(wanted[e] > weights[used - 1])) continue;
    int64_t at = held < used ? held++ : used - 1;
    for (; at > 0 && wanted[e] > weights[at - 1]; --at) {
      weights[at] = weights[at - 1];
      ids[at] = ids[at - 1];
    }
    weights[at] = wanted[e];
    ids[at] = int32_t(e);
  }
  for (int64_t j = 0; j < used; ++j) weights[j] = scores[ids[j]];
  float factor = routing.scale;
  if (routing.gating == Gating::SoftmaxOfChosen) {
    const float top = *std::max_element(weights, weights + used);
    float total = 0.0f;
    for (int64_t j = 0; j < used; ++j) total += weights[j] = std::exp(weights[j] - top);
    factor /= total;
  } else if (routing.renormalize) {
    float total = 0.0f;
    for (int64_t j = 0; j < used; ++j) total += weights[j];
    factor /= std::max(total, MIN_WEIGHT_SUM);
  }
  for (int64_t j = 0; j < used; ++j) weights[j] *= factor;
}

}  // namespace conifer::blocks
