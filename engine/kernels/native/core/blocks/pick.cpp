// Sample a token on one thread: two vectorised passes over the logits; only candidates are sorted.
#include "blocks/pick.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "isa/kernels.h"

namespace conifer::blocks {

namespace {

constexpr float MIN_TEMPERATURE = 1e-6f;  // same as in engine/sampling.py
constexpr int64_t CHUNK = 4096;           // logits summed in float32 at a time

struct Candidate {
  float weight;
  int32_t id;

  bool operator<(const Candidate& other) const {  // more likely candidates first
    return weight > other.weight || (weight == other.weight && id < other.id);
  }
};

struct Peak {
  float value;
  int64_t chunk;  // start of the first chunk that contains it
};

Peak find_peak(const float* logits, int64_t n) {
  Peak peak{-std::numeric_limits<float>::infinity(), 0};
  for (int64_t i = 0; i < n; i += CHUNK) {
    const float top = isa::kernels().peak(logits + i, std::min(CHUNK, n - i));
    if (std::isnan(top)) return {top, i};
    if (top > peak.value) peak = {top, i};
  }
  return peak;
}

// The k most likely candidates, in any order.
void take_likeliest(const float* weights, int64_t n, int64_t k, std::vector<Candidate>& out) {
  for (int64_t i = 0; i < n; ++i) {  // a heap whose front is the least likely
    const bool full = int64_t(out.size()) == k;
    if (weights[i] <= (full ? out.front().weight : 0.0f)) continue;
    if (full) {
      std::pop_heap(out.begin(), out.end());
      out.pop_back();
    }
    out.push_back({weights[i], int32_t(i)});
    std::push_heap(out.begin(), out.end());
  }
}

// The first candidate at which the cumulative weight exceeds `target`, or the last one.
template <class Weight>
int64_t walk(int64_t count, double target, Weight weight) {
  int64_t last = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (weight(i) == 0.0f) continue;
    last = i;
    if ((target -= weight(i)) < 0.0) break;
  }
  return last;
}

}  // namespace

int32_t pick(const float* logits, int64_t n, const Drawing& how, double uniform) {
  const Peak peak = find_peak(logits, n);
  if (!std::isfinite(peak.value)) return NOT_FINITE;
  if (how.temperature == 0.0f)
    return int32_t(std::find(logits + peak.chunk, logits + n, peak.value) - logits);

  static thread_local std::vector<float> weights;
  static thread_local std::vector<Candidate> candidates;
  weights.resize(size_t(n));
  candidates.clear();
  const float factor = 1.0f / std::max(how.temperature, MIN_TEMPERATURE);
  double total = 0.0;
  for (int64_t i = 0; i < n; i += CHUNK)
    total += isa::kernels().weigh(logits + i, peak.value, factor, std::min(CHUNK, n - i),
                                  weights.data() + i);
  if (how.top_k == 0 && how.top_p == 1.0f && how.min_p == 0.0f)
    return int32_t(walk(n, uniform * total, [](int64_t i) { return weights[size_t(i)]; }));
  if (how.top_k > 0 && how.top_k < n) {
    take_likeliest(weights.data(), n, how.top_k, candidates);
    total = 0.0;
    for (const Candidate& candidate : candidates) total += candidate.weight;
  } else {
    // Tokens below this weight cannot be chosen: their total is less than what top_p cuts off, or
    // their weight is below min_p times the largest weight, which is 1.
    const double spare = std::max(1.0 - double(how.top_p), 0.0) * total / double(n);
    const float least = std::max(float(spare * 0.999), how.min_p);
    for (int64_t i = 0; i < n; ++i)
      if (weights[size_t(i)] > 0.0f && weights[size_t(i)] >= least)
        candidates.push_back({weights[size_t(i)], int32_t(i)});
  }
  // A heap with the most likely candidate at the front. Popped candidates move to the end.
  const auto less_likely = [](const Candidate& a, const Candidate& b) { return b < a; };
  std::make_heap(candidates.begin(), candidates.end(), less_likely);
  double mass = 0.0;
  auto rest = candidates.end();
  while (rest != candidates.begin() && (how.top_p == 1.0f || mass < how.top_p * total) &&
         candidates.front().weight >= how.min_p) {
    mass += candidates.front().weight;
    std::pop_heap(candidates.begin(), rest--, less_likely);
  }
  const Candidate* last = &candidates.back();
  const auto weight = [last](int64_t i) { return last[-i].weight; };
  return last[-walk(candidates.end() - rest, uniform * mass, weight)].id;
}

}  // namespace conifer::blocks
