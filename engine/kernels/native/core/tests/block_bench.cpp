// Times the pool, attention, and whole layers of two models' shapes.
// Usage: block_bench [threads] [part]. part: pool, attend, smol or qwen; all by default.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "blocks/block.h"
#include "blocks/workspace.h"
#include "isa/isa.h"

using namespace conifer;
using namespace conifer::attention;
using namespace conifer::blocks;
using quant::Type;

namespace {

std::mt19937_64 generator(3);

struct Times {
  double best, median;  // microseconds
};

// Call fn(i) repeatedly for about `seconds`.
Times time_calls(double seconds, const std::function<void(int)>& fn) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> times;
  fn(0);
  const auto start = Clock::now();
  for (int i = 1; i < 6 || std::chrono::duration<double>(Clock::now() - start).count() < seconds;
       ++i) {
    const auto before = Clock::now();
    fn(i);
    times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - before).count());
  }
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2]};
}

std::vector<float> gaussians(int64_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(n));
  for (float& value : x) value = normal(generator);
  return x;
}

// Random blocks whose scales are finite and small, whatever the type.
struct Weights {
  std::vector<uint8_t> bytes;
  Matrix matrix;

  Weights(Type type, int64_t rows, int64_t cols, int64_t stack = 1)
      : bytes(size_t(stack * rows * quant::row_bytes(type, cols)) + 64),
        matrix{bytes.data(), type, rows, cols} {
    for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
      const uint64_t random = generator() & 0x1b1b1b1b1b1b1b1bu;
      std::memcpy(bytes.data() + i, &random, 8);
    }
  }
  Weights(Weights&&) = default;
  double size() const { return double(bytes.size()); }
};

struct Cache {
  std::vector<uint8_t> keys, values;
  std::vector<uint16_t> key_scales, value_scales;
  KVCache cache;

  Cache(CacheType type, int64_t heads, int64_t capacity, int64_t dims)
      : keys(size_t(heads * capacity * dims * 4), 0x11),
        values(keys),
        key_scales(size_t(heads * capacity * dims / 32), 0x1111),
        value_scales(key_scales),
        cache{type,
              capacity,
              0,
              {keys.data(), key_scales.data()},
              {values.data(), value_scales.data()}} {}
};

void bench_pool(Pool& pool) {
  const Times run = time_calls(0.3, [&](int) {
    for (int i = 0; i < 100; ++i) pool.run([](int, int) {});
  });
  const Times barriers = time_calls(0.3, [&](int) {
    pool.run([&](int, int) {
      for (int i = 0; i < 100; ++i) pool.barrier();
    });
  });
  std::printf("run %.2f us (median %.2f), barrier %.2f us (median %.2f)\n", run.best / 100,
              run.median / 100, barriers.best / 100, barriers.median / 100);
}

// Reads only the cache, as in Qwen3-30B-A3B: 4 kv heads of 128, 8 query heads each, depth 4096.
void bench_attend(Pool& pool) {
  const int64_t depth = 4096, heads = 4, dims = 128, group = 8;
  const std::vector<float> random = gaussians(MAX_ROWS * dims);
  Floats aligned;
  float* queries = aligned.need(MAX_ROWS * dims);
  std::copy(random.begin(), random.end(), queries);
  for (CacheType type : {CacheType::F16, CacheType::Q8, CacheType::F32}) {
    std::vector<Cache> caches;  // too large to stay in the last-level cache
    for (int i = 0; i < 12; ++i) caches.emplace_back(type, heads, depth, dims);
    std::vector<Floats> scratch(size_t(pool.threads())), out(scratch.size()), state(out.size());
    const double bytes = double(depth * heads * 2 * dims) * (type == CacheType::F32   ? 4
                                                             : type == CacheType::F16 ? 2
                                                                                      : 1.0625);
    const Times one = time_calls(0.5, [&](int i) {
      const KVCache& cache = caches[size_t(i % 12)].cache;
      pool.run([&](int thread, int threads) {
        float* tops = state[size_t(thread)].need(32);
        float* mixed = out[size_t(thread)].need(MAX_ROWS * dims);
        float* own = scratch[size_t(thread)].need(attention_scratch(dims, dims));
        for (int64_t h = 0; h < heads; ++h) {
          const Range range = share(depth, thread, threads, 16);
          attend_one(head_view(cache, h, dims, dims), queries, group, range.begin, range.end,
                     {tops, tops + 16, mixed}, own);
        }
      });
    });
    const std::vector<Sight> sights(MAX_ROWS, {0, depth, NO_SINK});
    const Times many = time_calls(0.5, [&](int i) {
      const KVCache& cache = caches[size_t(i % 12)].cache;
      pool.run([&](int thread, int) {
        attend_many(head_view(cache, thread % heads, dims, dims), queries, MAX_ROWS, sights.data(),
                    out[size_t(thread)].need(0), scratch[size_t(thread)].need(0));
      });
    });
    const double flops = 4.0 * double(depth * dims * MAX_ROWS) * pool.threads();
    std::printf(
        "cache type %d: one token %.0f us (median %.0f) %.1f GB/s; "
        "%d rows a thread %.0f us, %.0f GFLOP/s\n",
        int(type), one.best, one.median, bytes / one.median / 1e3, int(MAX_ROWS), many.median,
        flops / many.median / 1e3);
  }
}

struct Shapes {
  const char* name;
  int64_t width, heads, kv_heads, dims, hidden, experts, used;
  Type type, value_type;  // for most weights; for v and down
  int layers;
};

void bench_layers(const Shapes& s, Pool& pool) {
  struct Layer {
    Weights q, k, v, output, router, gate, up, down;
    Cache cache;
  };
  const int64_t stack = s.experts ? s.experts : 1;
  std::vector<Layer> layers;
  for (int i = 0; i < s.layers; ++i)
    layers.push_back(
        {Weights(s.type, s.heads * s.dims, s.width), Weights(s.type, s.kv_heads * s.dims, s.width),
         Weights(s.value_type, s.kv_heads * s.dims, s.width),
         Weights(s.type, s.width, s.heads * s.dims), Weights(Type::F32, s.experts, s.width),
         Weights(s.type, s.hidden, s.width, stack), Weights(s.type, s.hidden, s.width, stack),
         Weights(s.value_type, s.width, s.hidden, stack),
         Cache(CacheType::F16, s.kv_heads, 4608, s.dims)});
  const std::vector<float> gain(static_cast<size_t>(s.width), 1.0f);
  for (Layer& layer : layers) {  // routers that choose differently for each token
    float* router = reinterpret_cast<float*>(layer.router.bytes.data());
    const std::vector<float> random = gaussians(s.experts * s.width);
    std::copy(random.begin(), random.end(), router);
  }
  std::vector<float> periods;
  for (int64_t i = 0; i < s.dims; i += 2)
    periods.push_back(float(std::pow(1e6, double(i) / double(s.dims))));
  Workspace work;
  const Norm norm{gain.data(), 1e-6f};
  const auto attention = [&](int i, int64_t offset, const float* x, int64_t tokens, float* y) {
    const Layer& l = layers[size_t(i % s.layers)];
    AttentionLayer layer{};
    layer.norm = layer.q_norm = layer.k_norm = norm;
    layer.q = l.q.matrix, layer.k = l.k.matrix, layer.v = l.v.matrix;
    layer.output = l.output.matrix;
    layer.rope = {periods.data(), s.dims, false, 1.0f};
    layer.heads = s.heads, layer.kv_heads = s.kv_heads;
    layer.key_dim = layer.value_dim = s.dims;
    layer.scale = 0.1f, layer.residual = 1.0f;
    attention_block(layer, &l.cache.cache, offset, x, tokens, y, work, pool);
  };
  const auto feed = [&](int i, const float* x, int64_t tokens, float* y) {
    const Layer& l = layers[size_t(i % s.layers)];
    if (s.experts)
      moe_block({norm,
                 l.router.matrix,
                 l.gate.matrix,
                 l.up.matrix,
                 l.down.matrix,
                 {s.experts, s.used, true, 1.0f}},
                x, tokens, y, work, pool);
    else
      dense_block({norm, l.gate.matrix, l.up.matrix, l.down.matrix, 1.0f}, x, tokens, y, work,
                  pool);
  };
  const Layer& l = layers[0];
  const double attention_bytes = l.q.size() + l.k.size() + l.v.size() + l.output.size();
  const double feed_bytes = (l.gate.size() + l.up.size() + l.down.size()) *
                                (s.experts ? double(s.used) / double(s.experts) : 1.0) +
                            l.router.size();
  const std::vector<float> x = gaussians(512 * s.width);
  std::vector<float> y(x.size());
  const auto row = [&](int i) { return x.data() + (i * 37 % 512) * s.width; };
  std::printf("%s: attention %.2f MB, feed-forward %.2f MB a token\n", s.name,
              attention_bytes / 1e6, feed_bytes / 1e6);
  for (int64_t depth : {0, 4096}) {
    const Times t = time_calls(0.5, [&](int i) { attention(i, depth, row(i), 1, y.data()); });
    std::printf("  attention T 1 depth %4d: %7.0f us (best %.0f), weights at %.1f GB/s\n",
                int(depth), t.median, t.best, attention_bytes / t.median / 1e3);
  }
  const Times one = time_calls(0.5, [&](int i) { feed(i, row(i), 1, y.data()); });
  std::printf("  feed-forward T 1:         %7.0f us (best %.0f), %.1f GB/s\n", one.median, one.best,
              feed_bytes / one.median / 1e3);
  const Times layer = time_calls(0.5, [&](int i) {
    attention(i, 0, row(i), 1, y.data());
    feed(i, y.data(), 1, y.data());
  });
  std::printf("  layer T 1:                %7.0f us (best %.0f), %.1f GB/s\n", layer.median,
              layer.best, (attention_bytes + feed_bytes) / layer.median / 1e3);
  const Times prefill = time_calls(0.5, [&](int i) { attention(i, 0, x.data(), 512, y.data()); });
  std::printf("  attention T 512:          %7.0f us (best %.0f)\n", prefill.median, prefill.best);
  const Times many = time_calls(0.5, [&](int i) { feed(i, x.data(), 512, y.data()); });
  std::printf("  feed-forward T 512:       %7.0f us (best %.0f)\n", many.median, many.best);
}

}  // namespace

int main(int argc, char** argv) {
  Pool pool(argc > 1 ? std::atoi(argv[1]) : 2);
  const std::string part = argc > 2 ? argv[2] : "";
  std::printf("%s, %d threads\n", isa::name(isa::current()), pool.threads());
  if (part.empty() || part == "pool") bench_pool(pool);
  if (part.empty() || part == "attend") bench_attend(pool);
  if (part.empty() || part == "smol")
    bench_layers({"SmolLM2-135M", 576, 9, 3, 64, 1536, 0, 0, Type::Q4_1, Type::Q4_1, 30}, pool);
  if (part.empty() || part == "qwen")
    bench_layers({"Qwen3-30B-A3B", 2048, 32, 4, 128, 768, 128, 8, Type::Q4_K, Type::Q6_K, 2}, pool);
}
