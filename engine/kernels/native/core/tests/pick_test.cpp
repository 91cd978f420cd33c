// Tests sampling a token against plain loops in float64, on every instruction set. Exits with the
// number of failures.
#include "blocks/pick.h"
#include "block_support.h"

namespace {

struct Share {
  int32_t id;
  double weight;
};

// The tokens that may be sampled, in the order used by `pick`.
std::vector<Share> shares(const Floats32& logits, const Drawing& how) {
  const double top = *std::max_element(logits.begin(), logits.end());
  std::vector<Share> all;
  const double temperature = std::max(how.temperature, 1e-6f);
  for (size_t i = 0; i < logits.size(); ++i)
    all.push_back({int32_t(i), std::exp((logits[i] - top) / temperature)});
  if (how.top_k == 0 && how.top_p == 1.0f && how.min_p == 0.0f) return all;
  std::stable_sort(all.begin(), all.end(),
                   [](const Share& a, const Share& b) { return a.weight > b.weight; });
  if (how.top_k > 0 && how.top_k < int64_t(all.size())) all.resize(size_t(how.top_k));
  const auto add = [](double sum, const Share& share) { return sum + share.weight; };
  const double total = std::accumulate(all.begin(), all.end(), 0.0, add);
  double before = 0.0;
  size_t count = 0;
  while (count < all.size() && before < how.top_p * total && all[count].weight >= how.min_p)
    before += all[count++].weight;
  all.resize(count);
  return all;
}

void test_draws(int64_t n, const Drawing& how) {
  char what[120];
  std::snprintf(what, sizeof what, "%d logits, temperature %g, top-k %d, top-p %g, min-p %g",
                int(n), how.temperature, int(how.top_k), how.top_p, how.min_p);
  const Floats32 logits = gaussians(n, 3.0);
  const std::vector<Share> left = shares(logits, how);
  double total = 0.0, before = 0.0;
  for (const Share& share : left) total += share.weight;
  for (const Share& share : left) {  // in the middle of the token's own range
    if (share.weight > 1e-4 * total)
      expect(pick(logits.data(), n, how, (before + share.weight / 2) / total) == share.id, what);
    before += share.weight;
  }
  for (const double uniform : {0.0, 1.0 - 1e-16}) {
    const int32_t id = pick(logits.data(), n, how, uniform);
    const auto is = [id](const Share& share) { return share.id == id; };
    expect(std::any_of(left.begin(), left.end(), is), what);
  }
}

void test_greedy(int64_t n) {
  Floats32 logits = gaussians(n, 3.0);
  const Drawing greedy{0.0f, 0, 1.0f, 0.0f};
  const int32_t best = int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
  expect(pick(logits.data(), n, greedy, 0.5) == best, "the likeliest");
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    const size_t at = generator() % size_t(n);
    const float kept = logits[at];
    logits[at] = bad;
    expect(pick(logits.data(), n, greedy, 0.5) == NOT_FINITE, "greedy, not finite");
    expect(pick(logits.data(), n, {1.0f, 4, 0.9f, 0.0f}, 0.5) == NOT_FINITE, "drawn, not finite");
    logits[at] = kept;
  }
}

void test_all(Pool&) {
  for (const int64_t n : {1, 7, 16, 33, 1000, 4096, 9001}) {
    for (int i = 0; i < 10; ++i) test_greedy(n);
    for (const Drawing& how : std::initializer_list<Drawing>{{1.0f, 0, 1.0f, 0.0f},
                                                             {0.7f, 0, 1.0f, 0.0f},
                                                             {0.6f, 20, 0.95f, 0.0f},
                                                             {1.0f, 0, 0.9f, 0.0f},
                                                             {1.0f, 0, 1.0f, 0.05f},
                                                             {1.5f, 300, 0.99f, 0.001f},
                                                             {1e-30f, 0, 0.9f, 0.0f}})
      test_draws(n, how);
  }
}

}  // namespace

int main() { return run_everywhere(test_all); }
