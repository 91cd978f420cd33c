// Tests the blocks against plain loops in float64. Exits with the number of failures.
#include "block_support.h"

namespace {

struct AttentionCase {
  int64_t heads, kv_heads, key_dim, value_dim, rope_dims;
  bool interleaved, extras;  // extras: biases, q and k norms, a magnitude
  Type type;
  CacheType cache;
  int64_t window = 0;
  bool sinks = false, whole_norms = false, norms_last = false;
  float residual = 1.0f;
  int64_t width = 96;
  int64_t gates = 0;  // per head: one, or one for each value
  Gate gate_kind = Gate::Sigmoid;
  float score_cap = 0.0f;
  Temperature temperature = {};
  bool chunked = false, value_norm = false, keys_are_values = false, post_norm = false;
};

std::string describe(const AttentionCase& c) {
  char text[300];
  std::snprintf(
      text, sizeof text,
      "attention %d/%d heads of %d,%d rope %d%s type %d cache %d window %d%s%s%s gates %d "
      "cap %g%s%s",
      int(c.heads), int(c.kv_heads), int(c.key_dim), int(c.value_dim), int(c.rope_dims),
      c.interleaved ? "i" : "", int(c.type), int(c.cache), int(c.window), c.sinks ? " sinks" : "",
      c.whole_norms ? " whole norms" : "", c.norms_last ? " norms last" : "", int(c.gates),
      double(c.score_cap), c.chunked ? " chunked" : "", c.post_norm ? " post norm" : "");
  return text;
}

// The expected result of one call, computed from the keys and values that it stored.
Doubles attention_reference(const AttentionLayer& layer, const Doubles& q,
                            const std::function<double(int, int64_t, int64_t, int64_t)>& stored,
                            int64_t past, int64_t tokens, int64_t start = 0) {
  const int64_t group = layer.heads / layer.kv_heads;
  Doubles mixed;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < layer.heads; ++h) {
      Doubles scores;
      const int64_t window = layer.window, at = past + t;
      const int64_t first = !window         ? start
                            : layer.chunked ? std::max(at / window * window, start)
                                            : std::max<int64_t>(at + 1 - window, start);
      for (int64_t s = first; s <= past + t; ++s) {
        double dot = 0.0;
        for (int64_t i = 0; i < layer.key_dim; ++i)
          dot += q[size_t((t * layer.heads + h) * layer.key_dim + i)] * stored(0, h / group, s, i);
        dot *= layer.scale * layer.temperature.at(at);
        scores.push_back(layer.score_cap ? layer.score_cap * std::tanh(dot / layer.score_cap)
                                         : dot);
      }
      const double top = *std::max_element(scores.begin(), scores.end());
      double total = layer.sinks ? std::exp(layer.sinks[h] - top) : 0.0;
      for (double& score : scores) total += score = std::exp(score - top);
      for (int64_t i = 0; i < layer.value_dim; ++i) {
        double sum = 0.0;
        for (int64_t s = first; s <= past + t; ++s)
          sum += scores[size_t(s - first)] / total * stored(1, h / group, s, i);
        mixed.push_back(sum);
      }
    }
  return mixed;
}

void test_attention(const AttentionCase& c, Pool& pool) {
  const int64_t q_rows = c.heads * c.key_dim, k_rows = c.kv_heads * c.key_dim;
  const int64_t v_rows = c.kv_heads * c.value_dim;
  const Weights q(c.type, q_rows, c.width), k(c.type, k_rows, c.width);
  const Weights own_v(c.type, v_rows, c.width), output(c.type, c.width, c.heads * c.value_dim);
  const Weights& v = c.keys_are_values ? k : own_v;
  const Weights gate(c.type, c.gates ? c.heads * c.gates : 1, c.width);
  const Floats32 post_gain = gaussians(c.width, 0.2, 1.0), value_gain = gaussians(c.value_dim);
  const Floats32 gain = gaussians(c.width, 0.2, 1.0), head_gain = gaussians(q_rows, 0.2, 1.0);
  const Floats32 sinks = gaussians(c.heads);
  const Floats32 bias = gaussians(std::max(q_rows, c.width));
  Floats32 periods;
  for (int64_t i = 0; i < c.rope_dims; i += 2)
    periods.push_back(float(std::pow(10000.0, double(i) / double(c.rope_dims))));
  AttentionLayer layer{};
  layer.norm = {gain.data(), 1e-5f};
  layer.q = q.matrix, layer.k = k.matrix, layer.output = output.matrix;
  if (!c.keys_are_values) layer.v = v.matrix;
  if (c.gates) layer.gate = gate.matrix;
  if (c.post_norm) layer.post_norm = {post_gain.data(), 1e-5f};
  if (c.value_norm) layer.v_norm = {value_gain.data(), 1e-6f};
  layer.gate_kind = c.gate_kind, layer.score_cap = c.score_cap;
  layer.temperature = c.temperature, layer.chunked = c.chunked;
  if (c.extras) {
    layer.q_bias = layer.k_bias = layer.v_bias = layer.output_bias = bias.data();
    layer.q_norm = layer.k_norm = {head_gain.data(), 1e-6f};
  }
  layer.rope = {periods.data(), c.rope_dims, c.interleaved, c.extras ? 1.25f : 1.0f};
  layer.heads = c.heads, layer.kv_heads = c.kv_heads;
  layer.key_dim = c.key_dim, layer.value_dim = c.value_dim;
  layer.scale = float(1.0 / std::sqrt(double(c.key_dim)));
  layer.window = c.window, layer.residual = c.residual;
  layer.whole_norms = c.whole_norms, layer.norms_last = c.norms_last;
  if (c.sinks) layer.sinks = sinks.data();

  Workspace work;
  TestCache cache(c.cache, c.kv_heads, 300, c.key_dim, c.value_dim);
  const double stored_tolerance = (c.cache == CacheType::F32   ? 2e-6
                                   : c.cache == CacheType::F16 ? 4e-4
                                                               : 1e-2) +
                                  (c.type == Type::Q8_0 ? 1e-2 : 0.0);
  const double tolerance = c.type == Type::Q8_0       ? 1.5e-2
                           : c.cache == CacheType::Q8 ? 5e-5  // AMX rounds to 15 bits
                                                      : 5e-6;
  int64_t past = 0;
  for (int64_t tokens : {1, 33, 3, 1, 200, 1, 1}) {
    const std::string what = describe(c) + " T " + std::to_string(tokens) + " after " +
                             std::to_string(past) + " threads " + std::to_string(pool.threads());
    const bool cached = past != 38;  // in one case, tokens attend only to each other
    Floats32 x = gaussians(tokens * c.width), y(x.size());
    const Floats32 base = c.post_norm ? gaussians(tokens * c.width) : x;
    attention_block(layer, cached ? &cache.cache : nullptr, past, x.data(), tokens, y.data(), work,
                    pool, c.post_norm ? base.data() : nullptr);
    const Doubles h = normed(Doubles(x.begin(), x.end()), layer.norm, c.width);
    Doubles queries = multiply(q, h), keys = multiply(k, h), values = multiply(v, h);
    add_bias(queries, layer.q_bias, q_rows);
    add_bias(keys, layer.k_bias, k_rows);
    add_bias(values, layer.v_bias, v_rows);
    if (c.value_norm) values = normed(values, layer.v_norm, c.value_dim);
    const auto norm_both = [&] {
      queries = normed(queries, layer.q_norm, c.whole_norms ? q_rows : c.key_dim);
      keys = normed(keys, layer.k_norm, c.whole_norms ? k_rows : c.key_dim);
    };
    if (c.extras && !c.norms_last) norm_both();
    rotate_all(queries, layer.rope, c.heads, c.key_dim, past);
    rotate_all(keys, layer.rope, c.kv_heads, c.key_dim, past);
    if (c.extras && c.norms_last) norm_both();
    const auto made = [&](int which, int64_t head, int64_t token, int64_t i) {
      const int64_t dims = which ? c.value_dim : c.key_dim;
      return (which ? values : keys)[size_t((token * c.kv_heads + head) * dims + i)];
    };
    const auto stored = [&](int which, int64_t head, int64_t token, int64_t i) {
      if (!cached) return made(which, head, token - past, i);
      return cache.at(which, head, token, which ? c.value_dim : c.key_dim, i);
    };
    if (cached)
      for (int which : {0, 1}) {
        const int64_t dims = which ? c.value_dim : c.key_dim;
        Floats32 got;
        Doubles want;
        for (int64_t head = 0; head < c.kv_heads; ++head)
          for (int64_t t = 0; t < tokens; ++t)
            for (int64_t i = 0; i < dims; ++i) {
              got.push_back(float(stored(which, head, past + t, i)));
              want.push_back(made(which, head, t, i));
            }
        expect_close(got.data(), want, stored_tolerance, what + (which ? " values" : " keys"));
      }
    Doubles mixed = attention_reference(layer, queries, stored, past, tokens, cached ? 0 : past);
    if (c.gates) {
      const Doubles gates = multiply(gate, h);
      for (size_t i = 0; i < mixed.size(); ++i) {
        const double g = gates[c.gates == 1 ? i / size_t(c.value_dim) : i];
        mixed[i] *= c.gate_kind == Gate::Sigmoid ? 1.0 / (1.0 + std::exp(-g)) : softplus(g);
      }
    }
    Doubles want = multiply(output, mixed);
    add_bias(want, layer.output_bias, c.width);
    if (c.post_norm) want = normed(want, layer.post_norm, c.width);
    for (size_t i = 0; i < want.size(); ++i) want[i] = base[i] + c.residual * want[i];
    expect_close(y.data(), want, tolerance, what);
    attention_block(layer, cached ? &cache.cache : nullptr, past, x.data(), tokens, x.data(), work,
                    pool, c.post_norm ? base.data() : nullptr);
    expect(x == y, what + " in place");
    if (cached) {  // a layer that borrows the keys and values
      AttentionLayer borrower = layer;
      borrower.k = borrower.v = {}, borrower.k_bias = borrower.v_bias = nullptr;
      const Floats32 same = gaussians(tokens * c.width);
      attention_block(layer, &cache.cache, past, same.data(), tokens, x.data(), work, pool);
      attention_block(borrower, &cache.cache, past, same.data(), tokens, y.data(), work, pool);
      expect(x == y, what + " with borrowed keys");
    }
    if (cached || past == 38) past += cached ? tokens : 0;
    if (!cached) {  // repeat with the cache, so that later calls find no gap
      x = gaussians(tokens * c.width);
      attention_block(layer, &cache.cache, past, x.data(), tokens, y.data(), work, pool);
      past += tokens;
    }
  }
}

// bias: the same for all three projections of every expert; may be null.
Doubles gated(const Weights& gate, const Weights& up, const Weights& down, const Doubles& h,
              int64_t expert, Activation activation = Activation::Silu,
              const float* bias = nullptr) {
  Doubles hidden = multiply(gate, h, expert), other = multiply(up, h, expert);
  add_bias(hidden, bias, gate.matrix.rows);
  add_bias(other, bias, up.matrix.rows);
  for (size_t i = 0; i < hidden.size(); ++i)
    hidden[i] = activated(activation, 0.0, true, hidden[i], other[i]);
  Doubles y = multiply(down, hidden, expert);
  add_bias(y, bias, down.matrix.rows);
  return y;
}

void test_dense(Type type, int64_t width, int64_t hidden, Pool& pool) {
  const Weights gate(type, hidden, width), up(type, hidden, width), down(type, width, hidden);
  const Weights output(type, 130, width);
  const Floats32 gain = gaussians(width, 0.2, 1.0);
  const DenseLayer layer{{gain.data(), 1e-5f}, gate.matrix, up.matrix, down.matrix, 1.0f};
  const Head head{layer.norm, output.matrix};
  Workspace work;
  const double tolerance = type == Type::Q8_0 ? 1.5e-2 : 3e-6;
  for (int64_t tokens : {1, 3, 33, 1}) {
    const std::string what = " type " + std::to_string(int(type)) + " width " +
                             std::to_string(width) + " T " + std::to_string(tokens) + " threads " +
                             std::to_string(pool.threads());
    Floats32 x = gaussians(tokens * width), y(x.size()), logits(size_t(tokens * 130));
    dense_block(layer, x.data(), tokens, y.data(), work, pool);
    const Doubles h = normed(Doubles(x.begin(), x.end()), layer.norm, width);
    Doubles want = gated(gate, up, down, h, 0);
    for (size_t i = 0; i < want.size(); ++i) want[i] += x[i];
    expect_close(y.data(), want, tolerance, "dense" + what);
    head_block(head, x.data(), tokens, logits.data(), work, pool);
    expect_close(logits.data(), multiply(output, h), tolerance, "head" + what);
    dense_block(layer, x.data(), tokens, x.data(), work, pool);
    expect(x == y, "dense in place" + what);
  }
}

// extras: expert biases, the clamped activation, a weighted shared expert.
void test_experts(Type type, const Routing& routing, bool same_for_all, Pool& pool,
                  bool extras = false) {
  const int64_t width = 64, hidden = 96, experts = routing.experts, used = routing.used;
  const Weights gate(type, hidden, width, experts), up(type, hidden, width, experts);
  const Weights down(type, width, hidden, experts);
  Weights router(Type::F32, experts, width);
  if (same_for_all) {  // with equal scores, the first experts get every token
    std::fill(router.bytes.begin(), router.bytes.end(), uint8_t(0));
    std::fill(router.floats.begin(), router.floats.end(), 0.0f);
  }
  const Floats32 gain = gaussians(width, 0.2, 1.0);
  ExpertLayer layer{{gain.data(), 1e-5f}, router.matrix, gate.matrix, up.matrix,
                    down.matrix,          routing};
  const Floats32 one_bias = gaussians(hidden);  // for every projection in every expert
  Floats32 hidden_bias, width_bias;
  for (int64_t e = 0; e < experts; ++e) {
    hidden_bias.insert(hidden_bias.end(), one_bias.begin(), one_bias.end());
    width_bias.insert(width_bias.end(), one_bias.begin(), one_bias.begin() + width);
  }
  const Weights shared_gate(type, 2 * hidden, width), shared_up(type, 2 * hidden, width);
  const Weights shared_down(type, width, 2 * hidden);
  const Floats32 score = gaussians(width, 0.1);
  if (extras) {
    layer.activation = layer.shared_activation = Activation::Clamped;
    layer.gate_bias = layer.up_bias = hidden_bias.data(), layer.down_bias = width_bias.data();
    layer.shared_gate = shared_gate.matrix, layer.shared_up = shared_up.matrix;
    layer.shared_down = shared_down.matrix, layer.shared_score = score.data();
  }
  const float* bias = extras ? one_bias.data() : nullptr;
  Workspace work;
  const double tolerance = type == Type::Q8_0 ? 1.5e-2 : 3e-6;
  for (int64_t tokens : {1, 3, 33, 600, 1}) {
    if (tokens == 600 && !same_for_all) continue;
    const std::string what = " of " + std::to_string(used) + "/" + std::to_string(experts) +
                             " type " + std::to_string(int(type)) + " T " + std::to_string(tokens) +
                             " threads " + std::to_string(pool.threads());
    Floats32 x = gaussians(tokens * width), y(x.size()), z(x.size());
    moe_block(layer, x.data(), tokens, y.data(), work, pool);
    const Doubles h = normed(Doubles(x.begin(), x.end()), layer.norm, width);
    const Doubles logits = multiply(router, h);
    std::vector<int32_t> all_ids;
    Floats32 all_weights;
    Doubles want(x.begin(), x.end()), bare(x.size());
    for (int64_t t = 0; t < tokens; ++t) {
      std::vector<int32_t> order(static_cast<size_t>(experts));
      std::iota(order.begin(), order.end(), 0);
      const double* scores = logits.data() + t * experts;
      std::stable_sort(order.begin(), order.end(),
                       [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
      double total = 0.0, chosen = 0.0;
      for (int64_t e = 0; e < experts; ++e) total += std::exp(scores[e]);
      for (int64_t j = 0; j < used; ++j) chosen += std::exp(scores[order[size_t(j)]]) / total;
      const Doubles token(h.begin() + t * width, h.begin() + (t + 1) * width);
      for (int64_t j = 0; j < used; ++j) {
        const int32_t id = order[size_t(j)];
        double weight = std::exp(scores[id]) / total * routing.scale;
        if (routing.renormalize) weight /= std::max(chosen, 6.103515625e-05);
        all_ids.push_back(id);
        all_weights.push_back(float(weight));
        const Doubles part = gated(gate, up, down, token, id, layer.activation, bias);
        for (int64_t i = 0; i < width; ++i) {
          want[size_t(t * width + i)] += weight * part[size_t(i)];
          bare[size_t(t * width + i)] += weight * part[size_t(i)];
        }
      }
      if (!extras) continue;
      double dot = 0.0;
      for (int64_t i = 0; i < width; ++i) dot += score[size_t(i)] * token[size_t(i)];
      const Doubles part = gated(shared_gate, shared_up, shared_down, token, 0, layer.activation);
      for (int64_t i = 0; i < width; ++i) {
        const double weighed = part[size_t(i)] / (1.0 + std::exp(-dot));
        want[size_t(t * width + i)] += weighed;
        bare[size_t(t * width + i)] += weighed;
      }
    }
    expect_close(y.data(), want, tolerance, "experts" + what);
    const Floats32 seen(h.begin(), h.end());
    run_experts(layer, seen.data(), tokens, all_ids.data(), all_weights.data(), z.data(), work,
                pool);
    expect_close(z.data(), bare, 2 * tolerance, "experts alone" + what);
    std::vector<int32_t> chosen(all_ids.size(), -1);
    moe_block(layer, x.data(), tokens, x.data(), work, pool, chosen.data());
    expect(x == y, "experts in place" + what);
    expect(chosen == all_ids, "the experts that were chosen" + what);
  }
}

void test_route() {
  const Floats32 logits = {1.0f, 3.0f, 3.0f, -2.0f, 2.0f};
  int32_t ids[3];
  float weights[3];
  route({5, 3, true, 2.0f}, logits.data(), ids, weights);
  expect(ids[0] == 1 && ids[1] == 2 && ids[2] == 4, "route: order");
  expect(std::abs(weights[0] + weights[1] + weights[2] - 2.0f) < 1e-6f, "route: scale");
  const Floats32 far = {-200.0f, 0.0f, -201.0f};
  route({3, 3, true, 1.0f}, far.data(), ids, weights);
  expect(weights[0] == 1.0f && weights[1] == 0.0f, "route: far apart");
  const auto sigmoid = [](float x) { return 1.0f / (1.0f + std::exp(-x)); };
  Routing routing{5, 2, false, 1.0f};
  routing.gating = Gating::SoftmaxOfChosen;
  route(routing, logits.data(), ids, weights);
  expect(ids[0] == 1 && ids[1] == 2 && weights[0] == 0.5f, "route: softmax of the chosen");
  const Floats32 bias = {0.9f, 0.0f, 0.0f, 0.0f, 0.5f};
  routing.gating = Gating::Sigmoid, routing.bias = bias.data();
  route(routing, logits.data(), ids, weights);
  expect(ids[0] == 0 && ids[1] == 4, "route: the bias chooses");
  expect(std::abs(weights[0] - sigmoid(1.0f)) < 1e-6f, "route: and does not weigh");
  const Floats32 grouped = {4.0f, -9.0f, 2.0f, 1.5f, 3.0f, -5.0f};
  routing = {6, 2, false, 1.0f, Gating::Sigmoid, nullptr, 3, 1};
  route(routing, grouped.data(), ids, weights);
  expect(ids[0] == 2 && ids[1] == 3, "route: the group whose two best are best");
  routing.gating = Gating::Softmax;
  route(routing, grouped.data(), ids, weights);
  expect(ids[0] == 0 && ids[1] == 1, "route: the group of the best");
}

void test_blocks(Pool& pool) {
  for (CacheType cache : {CacheType::F32, CacheType::F16, CacheType::Q8}) {
    test_attention({9, 3, 64, 64, 64, false, false, Type::F32, cache}, pool);
    test_attention({4, 4, 32, 32, 32, true, true, Type::F32, cache}, pool);
    test_attention({8, 1, 128, 128, 64, false, true, Type::F16, cache}, pool);
    test_attention({6, 2, 20, 12, 20, true, false, Type::F32, cache}, pool);
    test_attention({16, 1, 80, 48, 80, false, true, Type::F32, cache}, pool);
    test_attention({5, 5, 8, 8, 4, false, true, Type::F32, cache}, pool);
  }
  test_attention({4, 2, 64, 64, 64, true, true, Type::Q8_0, CacheType::F16}, pool);
  for (CacheType cache : {CacheType::F16, CacheType::Q8}) {
    test_attention({8, 2, 32, 32, 32, false, true, Type::F32, cache, 20, true}, pool);
    test_attention({4, 4, 32, 32, 16, false, true, Type::F32, cache, 0, false, true}, pool);
    test_attention({6, 3, 32, 32, 0, false, true, Type::F32, cache, 130, true, false, true, 0.3f},
                   pool);
  }
  for (CacheType cache : {CacheType::F32, CacheType::Q8}) {  // Gemma 2 and 4, Laguna, Llama 4
    test_attention({.heads = 4,
                    .kv_heads = 2,
                    .key_dim = 32,
                    .value_dim = 32,
                    .rope_dims = 32,
                    .interleaved = false,
                    .extras = false,
                    .type = Type::F32,
                    .cache = cache,
                    .window = 20,
                    .score_cap = 1.5f,
                    .post_norm = true},
                   pool);
    test_attention({.heads = 8,
                    .kv_heads = 1,
                    .key_dim = 48,
                    .value_dim = 48,
                    .rope_dims = 12,
                    .interleaved = false,
                    .extras = true,
                    .type = Type::F32,
                    .cache = cache,
                    .value_norm = true,
                    .keys_are_values = true,
                    .post_norm = true},
                   pool);
    for (Gate kind : {Gate::Sigmoid, Gate::Softplus})
      for (int64_t gates : {1, 16})
        test_attention({.heads = 6,
                        .kv_heads = 3,
                        .key_dim = 32,
                        .value_dim = 16,
                        .rope_dims = 16,
                        .interleaved = false,
                        .extras = true,
                        .type = Type::F32,
                        .cache = cache,
                        .residual = 0.5f,
                        .gates = gates,
                        .gate_kind = kind},
                       pool);
    test_attention({.heads = 4,
                    .kv_heads = 2,
                    .key_dim = 32,
                    .value_dim = 32,
                    .rope_dims = 0,
                    .interleaved = true,
                    .extras = true,
                    .type = Type::F32,
                    .cache = cache,
                    .window = 16,
                    .norms_last = true,
                    .temperature = {0.3f, 8, 1},
                    .chunked = true},
                   pool);
  }
  test_dense(Type::F32, 64, 96, pool);
  test_dense(Type::F32, 40, 50, pool);
  test_dense(Type::Q8_0, 64, 160, pool);
  test_experts(Type::F32, {8, 2, true, 1.0f}, false, pool);
  test_experts(Type::F32, {8, 2, false, 2.5f}, true, pool);
  test_experts(Type::Q8_0, {12, 12, true, 1.0f}, false, pool);
  test_experts(Type::Q8_0, {16, 5, true, 1.0f}, true, pool);
  test_experts(Type::F32, {8, 3, true, 1.0f}, false, pool, true);
  test_experts(Type::Q8_0, {8, 3, false, 1.0f}, true, pool, true);
}

}  // namespace

int main() {
  test_route();
  return run_everywhere(test_blocks);
}
