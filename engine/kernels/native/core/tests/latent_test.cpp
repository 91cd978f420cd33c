// Tests latent attention against plain loops in float64. Exits with the number of failures.
#include "blocks/latent.h"
#include "block_support.h"

namespace {

struct LatentCase {
  int64_t heads, key_dim, value_dim, length, tokens;
};

// Rows as stored in a cache: each is a key and begins with its value.
void test_latent(const LatentCase& c, CacheType type, Pool& pool) {
  char what[120];
  std::snprintf(what, sizeof what, "latent attention %d heads of %d,%d, %d of %d tokens, cache %d",
                int(c.heads), int(c.key_dim), int(c.value_dim), int(c.tokens), int(c.length),
                int(type));
  TestCache cache(type, 1, c.length, c.key_dim, 1);
  for (int64_t t = 0; t < c.length; ++t)
    append(cache.cache, cache.cache.keys, 0, t, gaussians(c.key_dim).data(), c.key_dim);
  const Floats32 queries = gaussians(c.tokens * c.heads * c.key_dim, 1 / std::sqrt(c.key_dim));
  Doubles want(size_t(c.tokens * c.heads * c.value_dim), 0.0);
  for (int64_t row = 0; row < c.tokens * c.heads; ++row) {
    const int64_t visible = c.length - c.tokens + row / c.heads + 1;
    Doubles weights(size_t(visible), 0.0);
    double total = 0.0;
    for (int64_t t = 0; t < visible; ++t) {
      double score = 0.0;
      for (int64_t i = 0; i < c.key_dim; ++i)
        score += queries[size_t(row * c.key_dim + i)] * cache.at(0, 0, t, c.key_dim, i);
      total += weights[size_t(t)] = std::exp(score);
    }
    for (int64_t t = 0; t < visible; ++t)
      for (int64_t i = 0; i < c.value_dim; ++i)
        want[size_t(row * c.value_dim + i)] +=
            weights[size_t(t)] / total * cache.at(0, 0, t, c.key_dim, i);
  }
  Floats32 out(want.size(), -1.0f);
  Workspace work;
  const CacheBuffer& rows = cache.cache.keys;
  latent_attention(
      {type, rows.values, type == CacheType::Q8 ? rows.scales : nullptr, c.key_dim, c.value_dim,
       c.length, queries.data(), c.tokens, c.heads, out.data(), c.tokens == 1},
      work, pool);
  expect_close(out.data(), want, 2e-6, what);
}

struct LatentBlockCase {
  int64_t heads, query_rank, stays, turned, rank, value_dim;
  Type type;
  CacheType cache;
  int64_t index_heads = 0, index_dims = 0, top = 0;  // of an indexer
  Temperature temperature = {};
};

// The scores of the tokens up to a position, from the indexer's keys in the cache.
Doubles index_scores(const Indexer& indexer, const Doubles& queries, const Doubles& weights,
                     int64_t token, int64_t position, const TestCache& cache) {
  const int64_t dims = indexer.k.rows;
  Doubles turned(queries.begin() + token * indexer.heads * dims,
                 queries.begin() + (token + 1) * indexer.heads * dims);
  rotate_all(turned, indexer.rope, indexer.heads, dims, position);
  Doubles scores;
  for (int64_t s = 0; s <= position; ++s) {
    double score = 0.0;
    for (int64_t h = 0; h < indexer.heads; ++h) {
      double dot = 0.0;
      for (int64_t i = 0; i < dims; ++i)
        dot += turned[size_t(h * dims + i)] * cache.at(1, 0, s, dims, i);
      score += weights[size_t(token * indexer.heads + h)] * std::max(dot, 0.0);
    }
    scores.push_back(score);
  }
  return scores;
}

void test_latent_block(const LatentBlockCase& c, Pool& pool) {
  const int64_t width = 64, key = c.stays + c.turned, row = c.rank + c.turned;
  const Weights q_a(c.type, std::max<int64_t>(c.query_rank, 1), width);
  const Weights q(c.type, c.heads * key, c.query_rank ? c.query_rank : width);
  const Weights kv_a(c.type, row, width), k_b(c.type, c.rank, c.stays, c.heads);
  const Weights v_b(c.type, c.value_dim, c.rank, c.heads);
  const Weights output(c.type, width, c.heads * c.value_dim);
  const Floats32 gain = gaussians(std::max(c.query_rank, std::max(c.rank, width)), 0.2, 1.0);
  Floats32 periods;
  for (int64_t i = 0; i < c.turned; i += 2) periods.push_back(float(1 + 3 * i));
  LatentLayer layer{};
  layer.norm = layer.q_norm = layer.kv_norm = {gain.data(), 1e-5f};
  if (c.query_rank) layer.q_a = q_a.matrix;
  layer.q = q.matrix, layer.kv_a = kv_a.matrix, layer.k_b = k_b.matrix, layer.v_b = v_b.matrix;
  layer.output = output.matrix;
  layer.rope = {periods.data(), c.turned, true, 1.0f};
  layer.heads = c.heads, layer.scale = 0.2f, layer.residual = 0.7f;
  const Weights index_q(c.type, std::max<int64_t>(c.index_heads * c.index_dims, 1),
                        c.query_rank ? c.query_rank : width);
  const Weights index_k(c.type, std::max<int64_t>(c.index_dims, 1), width);
  const Weights index_weights(Type::F32, std::max<int64_t>(c.index_heads, 1), width);
  const Floats32 index_gain = gaussians(c.index_dims + 1, 0.2, 1.0);
  const Floats32 index_bias = gaussians(c.index_dims + 1);
  if (c.top)
    layer.indexer = {index_q.matrix,
                     index_k.matrix,
                     index_weights.matrix,
                     {index_gain.data(), 1e-6f, index_bias.data(), true},
                     {periods.data(), c.turned, false, 1.0f},
                     c.index_heads,
                     c.top};
  layer.temperature = c.temperature;
  Workspace work;
  TestCache cache(c.cache, 1, 100, row, std::max<int64_t>(c.index_dims, 1));
  const double tolerance = c.type == Type::Q8_0 ? 2.5e-2 : c.cache == CacheType::F32 ? 5e-6 : 5e-4;
  int64_t past = 0;
  for (int64_t tokens : {1, 37, 3, 1}) {
    Floats32 x = gaussians(tokens * width), y(x.size());
    latent_block(layer, &cache.cache, past, x.data(), tokens, y.data(), work, pool);
    const Doubles h = normed(Doubles(x.begin(), x.end()), layer.norm, width);
    const Doubles low = c.query_rank ? normed(multiply(q_a, h), layer.q_norm, c.query_rank) : h;
    Doubles queries = multiply(q, low), want(x.begin(), x.end()), mixed;
    const Doubles indexed = c.top ? multiply(index_q, low) : Doubles{};
    const Doubles weighed = c.top ? multiply(index_weights, h) : Doubles{};
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t position = past + t;
      std::vector<bool> seen(size_t(position + 1), !c.top || position < c.top);
      if (c.top && position >= c.top) {  // of equal scores, the first counts
        const Doubles scores = index_scores(layer.indexer, indexed, weighed, t, position, cache);
        std::vector<size_t> order(scores.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [&](size_t a, size_t b) { return scores[a] > scores[b]; });
        for (int64_t i = 0; i < c.top; ++i) seen[order[size_t(i)]] = true;
      }
      const float factor = c.temperature.at(position);
      for (int64_t head = 0; head < c.heads; ++head) {
        const double* from = queries.data() + (t * c.heads + head) * key;
        Doubles query(size_t(row), 0.0), turned(from + c.stays, from + key), latent(size_t(c.rank));
        rotate_all(turned, layer.rope, 1, c.turned, past + t);
        for (int64_t r = 0; r < c.rank; ++r)
          for (int64_t i = 0; i < c.stays; ++i)
            query[size_t(r)] += from[i] * k_b.floats[size_t((head * c.rank + r) * c.stays + i)];
        std::copy(turned.begin(), turned.end(), query.begin() + c.rank);
        double total = 0.0;
        for (int64_t s = 0; s <= past + t; ++s) {
          if (!seen[size_t(s)]) continue;
          double score = 0.0;
          for (int64_t i = 0; i < row; ++i) score += query[size_t(i)] * cache.at(0, 0, s, row, i);
          total += score = std::exp(score * layer.scale * factor);
          for (int64_t i = 0; i < c.rank; ++i)
            latent[size_t(i)] += score * cache.at(0, 0, s, row, i);
        }
        for (double& value : latent) value /= total;
        const Doubles made = multiply(v_b, latent, head);
        mixed.insert(mixed.end(), made.begin(), made.end());
      }
    }
    const Doubles added = multiply(output, mixed);
    for (size_t i = 0; i < want.size(); ++i) want[i] += layer.residual * added[i];
    expect_close(y.data(), want, tolerance,
                 "latent block, type " + std::to_string(int(c.type)) + " cache " +
                     std::to_string(int(c.cache)) + " T " + std::to_string(tokens) + " threads " +
                     std::to_string(pool.threads()));
    latent_block(layer, &cache.cache, past, x.data(), tokens, x.data(), work, pool);
    expect(x == y, "latent block in place");
    if (c.top) {  // the next layer sees what this one chose
      LatentLayer next = layer;
      next.indexer = {
          .q = {}, .k = {}, .weights = {}, .k_norm = {}, .rope = {}, .heads = 0, .top = c.top};
      const Floats32 same = gaussians(tokens * width);
      latent_block(layer, &cache.cache, past, same.data(), tokens, x.data(), work, pool);
      latent_block(next, &cache.cache, past, same.data(), tokens, y.data(), work, pool);
      expect(x == y, "latent block with the last layer's choice");
    }
    past += tokens;
  }
}

void test_all(Pool& pool) {
  for (CacheType cache : {CacheType::F32, CacheType::F16, CacheType::Q8}) {
    test_latent({4, 80, 64, 50, 1}, cache, pool);
    test_latent({16, 96, 64, 150, 7}, cache, pool);
    test_latent({130, 32, 24, 70, 3}, cache, pool);
    test_latent({1, 20, 12, 3, 3}, cache, pool);
    test_latent({9, 64, 48, 2, 1}, cache, pool);
  }
  for (CacheType cache : {CacheType::F16, CacheType::Q8}) {
    test_latent_block({4, 0, 32, 16, 64, 24, Type::F32, cache}, pool);
    test_latent_block({3, 48, 32, 8, 32, 32, Type::F16, cache}, pool);
  }
  for (CacheType cache : {CacheType::F32, CacheType::F16, CacheType::Q8})
    test_latent_block({4, 48, 32, 16, 64, 32, Type::F32, cache, 5, 24, 11, {0.3f, 8, 0}}, pool);
  test_latent_block({16, 0, 64, 32, 64, 64, Type::Q8_0, CacheType::F32}, pool);
}

}  // namespace

int main() { return run_everywhere(test_all); }
