// The latent-attention block. See block.h.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>

#include "blocks/latent.h"
#include "blocks/steps.h"
#include "isa/kernels.h"

namespace conifer::blocks {

using namespace attention;

namespace {

using Parts = Workspace::Parts;
using Thread = Parts::Thread;

// A stack of projections, one per head, over `tokens * heads` rows with consecutive heads.
struct HeadProduct {
  const Matrix& first;  // for head 0
  int64_t heads, tokens;
  float* y;  // head h of token t at (t * heads + h) * stride
  int64_t stride;

  int64_t rows() const { return heads * first.rows; }

  // Compute a range of all output rows, head after head. ids: scratch memory for token numbers.
  void multiply(const Activations& x, Range range, std::vector<int32_t>& ids) const {
    ids.resize(size_t(tokens));
    for (int64_t h = range.begin / first.rows; h < heads && h * first.rows < range.end; ++h) {
      const int64_t begin = std::max<int64_t>(range.begin - h * first.rows, 0);
      const int64_t end = std::min(range.end - h * first.rows, first.rows);
      Matrix matrix = first;
      matrix.data += h * first.rows * first.stride();
      for (int64_t t = 0; t < tokens; ++t) ids[size_t(t)] = int32_t(t * heads + h);
      gemm::matmul_rows(matrix, x, x.kind(), ids.data(), tokens, y + h * stride, heads * stride,
                        begin, end);
    }
  }
};

// State shared by the threads in one latent_block call. Axes: Q query rank, d query width per head,
// r rotated part of a query, R latent rank.
struct Call {
  const LatentLayer& layer;
  KVCache cache;
  int64_t past;  // tokens already in the cache
  const float* x;
  int64_t tokens;
  float* y;
  Workspace& work;
  Pool& pool;
  const Rotation* rotation;
  int64_t offset;  // position of the first token
  float* low;      // (T, Q): queries before their second projection
  float* kv;       // (T, R + r)
  float* queries;  // (T, H, d)
  float* gates;    // (T, H); null: none
  HeadProduct absorbed, values;
  LatentCall attention;
  int64_t dense;               // the first new tokens, which see all tokens before them
  std::atomic<int64_t>* next;  // for those, and for each of the others
  const Rotation* index_rotation;
  float *index_queries, *index_keys, *index_weights;  // (T, I d), (T, d), (T, I)
  RowSharing* sharing;                                // one per product, for a single token

  Parts& parts() const { return *work.parts; }
  int64_t turned() const { return layer.rope.dims; }
  int64_t rank() const { return layer.k_b.rows; }
  int64_t key_dim() const { return layer.q.rows / layer.heads; }
  int64_t stays() const { return key_dim() - turned(); }
  float scale(int64_t token) const { return layer.scale * layer.temperature.at(offset + token); }
};

// Call fn(Range) for this thread's share of the rows in product `i`.
template <class F>
void share_rows(const Call& call, int i, int64_t rows, int thread, int threads, F&& fn) {
  if (call.attention.decodes) return call.sharing[i].share_out(rows, thread, threads, fn);
  const Range mine = share(rows, thread, threads);
  if (mine.begin < mine.end) fn(mine);
}

void turn(const Call& call, int64_t token, float* x) {
  const Rope& rope = call.layer.rope;
  rotate(x, call.rotation->cosines(token), call.rotation->sines(token), rope.dims,
         rope.interleaved);
}

void turn_index(const Call& call, int64_t token, float* x) {
  const Rope& rope = call.layer.indexer.rope;
  rotate(x, call.index_rotation->cosines(token), call.index_rotation->sines(token), rope.dims,
         rope.interleaved);
}

// Copy a token's latent and rotated part, normalise and rotate the copy, and store it.
void append_row(const Call& call, int64_t token, Thread& own) {
  const int64_t rank = call.rank(), width = rank + call.turned();
  const float* from = call.kv + token * width;
  float* row = own.out.need(width);
  normalize(from, call.layer.kv_norm, rank, row);
  std::copy(from + rank, from + width, row + rank);
  turn(call, token, row + rank);
  append(call.cache, call.cache.keys, 0, call.past + token, row, width);
  const Indexer& indexer = call.layer.indexer;
  if (!indexer.k.data) return;
  const int64_t dims = indexer.k.rows;
  float* key = own.out.need(dims);
  normalize(call.index_keys + token * dims, indexer.k_norm, dims, key);
  turn_index(call, token, key);
  append(call.cache, call.cache.values, 0, call.past + token, key, dims);
}

// Write the rotated, scaled query parts for some heads after their absorbed parts.
void turn_queries(const Call& call, int64_t token, Range heads) {
  const int64_t r = call.turned();
  for (int64_t h = heads.begin; h < heads.end; ++h) {
    const int64_t row = token * call.layer.heads + h;
    const float* from = call.queries + row * call.key_dim() + call.stays();
    float* to = call.absorbed.y + row * call.absorbed.stride + call.rank();
    std::copy(from, from + r, to);
    turn(call, token, to);
    isa::kernels().scale(to, call.scale(token), r, to);
  }
}

// Normalise rows of x (T, n) into y: the only token, or this thread's tokens. y can then be
// multiplied as `input`.
void norm_rows(const Call& call, const float* x, const Norm& norm, int64_t n, float* y,
               Activations& input, int thread, int threads) {
  if (call.attention.decodes) {
    float* own = call.parts().threads[size_t(thread)]->normed.need(n);
    normalize(x, norm, n, own);
    return input.load(own, 1, n, n);
  }
  const Range mine = share(call.tokens, thread, threads, 1);
  for (int64_t t = mine.begin; t < mine.end; ++t) normalize(x + t * n, norm, n, y + t * n);
  call.pool.barrier();
  input.quantize(thread, threads);
  call.pool.barrier();
}

void project(const Call& call, int thread, int threads) {
  const LatentLayer& layer = call.layer;
  Parts& parts = call.parts();
  const bool one = call.attention.decodes, two_steps = layer.q_a.data;
  Thread& own = *parts.threads[size_t(thread)];
  Activations& input = one ? own.input : parts.input;
  norm_rows(call, call.x, layer.norm, layer.kv_a.cols, parts.normed.need(0), input, thread,
            threads);
  const Matrix& first = two_steps ? layer.q_a : layer.q;
  float* made = two_steps ? call.low : call.queries;
  const Indexer& indexer = layer.indexer;
  const Product products[] = {{first, made},
                              {layer.kv_a, call.kv},
                              {layer.gate, call.gates},
                              {indexer.k, call.index_keys},
                              {indexer.weights, call.index_weights}};
  share_rows(call, 0, total_rows(products), thread, threads,
             [&](Range rows) { multiply_products(products, input, rows); });
  call.pool.barrier();
  if (!two_steps) return;
  Activations& low = one ? own.hidden : parts.hidden;
  norm_rows(call, call.low, layer.q_norm, layer.q.cols, call.low, low, thread, threads);
  const Product queries[] = {{layer.q, call.queries}, {indexer.q, call.index_queries}};
  share_rows(call, 1, total_rows(queries), thread, threads,
             [&](Range rows) { multiply_products(queries, low, rows); });
  call.pool.barrier();
}

// Compute the queries in latent space and the new tokens' rows.
void absorb(const Call& call, int thread, int threads) {
  const LatentLayer& layer = call.layer;
  Parts& parts = call.parts();
  Thread& own = *parts.threads[size_t(thread)];
  const bool one = call.attention.decodes;
  Activations& heads = one ? own.hidden : parts.queries;
  if (one) {
    heads.load(call.queries, layer.heads, call.stays(), call.key_dim());
    turn_queries(call, 0, share(layer.heads, thread, threads, 1));
    if (thread == threads - 1) append_row(call, 0, own);
  } else {
    heads.quantize(thread, threads);
    const Range mine = share(call.tokens, thread, threads, 1);
    for (int64_t t = mine.begin; t < mine.end; ++t) {
      turn_queries(call, t, {0, layer.heads});
      append_row(call, t, own);
    }
    call.pool.barrier();
  }
  share_rows(call, 2, call.absorbed.rows(), thread, threads,
             [&](Range rows) { call.absorbed.multiply(heads, rows, own.ids); });
  call.pool.barrier();
  const Range rows = share(call.tokens * layer.heads, thread, threads, 1);
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    float* query = call.absorbed.y + i * call.absorbed.stride;
    isa::kernels().scale(query, call.scale(i / layer.heads), call.rank(), query);
  }
  call.pool.barrier();
}

// Score all tokens up to and including a new one, and let one thread choose the best.
void choose_rows(const Call& call, int64_t token, int thread, int threads) {
  const Indexer& indexer = call.layer.indexer;
  Parts& parts = call.parts();
  Thread& own = *parts.threads[size_t(thread)];
  const int64_t dims = indexer.k.rows, heads = indexer.heads, stride = padded(dims);
  const int64_t length = call.past + token + 1;
  float* queries = own.queries.need((heads + 3) / 4 * 4 * stride);
  std::fill(queries, queries + (heads + 3) / 4 * 4 * stride, 0.0f);
  for (int64_t h = 0; h < heads; ++h) {
    const float* from = call.index_queries + (token * heads + h) * dims;
    std::copy(from, from + dims, queries + h * stride);
    turn_index(call, token, queries + h * stride);
  }
  const CacheBuffer& keys = call.cache.values;
  const HeadView view{call.cache.type, dims,        dims,        dims, keys.values,
                      keys.values,     keys.scales, keys.scales, 0};
  float* scores = parts.index_scores.need(0);
  const Range mine = share(length, thread, threads, 64);
  if (mine.begin < mine.end)
    score_rows(view, queries, call.index_weights + token * heads, heads, mine.begin, mine.end,
               scores + mine.begin, own.scratch.need(score_scratch(dims, heads)));
  call.pool.barrier();
  if (thread == 0) {
    std::vector<int32_t>& ranked = parts.ranked;
    ranked.resize(size_t(length));
    std::iota(ranked.begin(), ranked.end(), 0);
    const auto better = [scores](int32_t a, int32_t b) {
      return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
    };
    std::nth_element(ranked.begin(), ranked.begin() + indexer.top - 1, ranked.end(), better);
    std::sort(ranked.begin(), ranked.begin() + indexer.top);
    std::copy_n(ranked.begin(), indexer.top,
                parts.seen.begin() + (token - call.dense) * indexer.top);
  }
  call.pool.barrier();
}

// Copy this thread's share of the cached rows that a token sees.
void gather_rows(const Call& call, int64_t token, int thread, int threads) {
  const LatentCall& attention = call.attention;
  const int64_t top = call.layer.indexer.top, dims = attention.key_dim;
  const int64_t size = attention.type == CacheType::F32   ? 4 * dims
                       : attention.type == CacheType::F16 ? 2 * dims
                                                          : dims;
  const int64_t scales = attention.scales ? 2 * (dims / q8_group(dims)) : 0;
  const int32_t* seen = call.parts().seen.data() + (token - call.dense) * top;
  auto* rows = reinterpret_cast<char*>(call.parts().rows.need(0));
  auto* row_scales = reinterpret_cast<char*>(call.parts().row_scales.need(0));
  const Range mine = share(top, thread, threads, 1);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    std::memcpy(rows + i * size, static_cast<const char*>(attention.rows) + seen[i] * size,
                size_t(size));
    if (scales)
      std::memcpy(row_scales + i * scales,
                  reinterpret_cast<const char*>(attention.scales) + seen[i] * scales,
                  size_t(scales));
  }
  call.pool.barrier();
}

// Attend with all tokens: first those that see all tokens before them, then the others one by one.
void attend(const Call& call, int thread, int threads) {
  LatentCall part = call.attention;
  part.tokens = call.dense, part.length = call.past + call.dense;
  if (call.dense) attend_latent(part, call.work, call.pool, call.next[0], thread, threads);
  call.pool.barrier();
  for (int64_t t = call.dense; t < call.tokens; ++t) {
    if (call.layer.indexer.k.data) choose_rows(call, t, thread, threads);
    gather_rows(call, t, thread, threads);
    part.tokens = 1, part.length = call.layer.indexer.top;
    part.rows = call.parts().rows.need(0);
    if (call.attention.scales)
      part.scales = reinterpret_cast<const uint16_t*>(call.parts().row_scales.need(0));
    part.queries = call.attention.queries + t * part.heads * part.key_dim;
    part.out = call.attention.out + t * part.heads * part.value_dim;
    attend_latent(part, call.work, call.pool, call.next[t - call.dense + 1], thread, threads);
    call.pool.barrier();
  }
}

// Multiply rows of the heads' results, numbered over all heads, by their gates' sigmoids.
void gate_values(const Call& call, Range rows) {
  if (!call.gates) return;
  const HeadProduct& values = call.values;
  for (int64_t t = 0; t < call.tokens; ++t)
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const float gate = call.gates[t * values.heads + i / values.stride];
      values.y[t * values.rows() + i] /= 1.0f + std::exp(-gate);
    }
}

void finish(const Call& call, int thread, int threads) {
  const LatentLayer& layer = call.layer;
  Parts& parts = call.parts();
  Thread& own = *parts.threads[size_t(thread)];
  const bool one = call.attention.decodes;
  const int64_t width = layer.output.rows, columns = layer.output.cols;
  Activations& latents = one ? own.hidden : parts.latents;
  if (one) {
    latents.load(call.attention.out, layer.heads, call.rank(), call.rank());
  } else {
    latents.quantize(thread, threads);
    call.pool.barrier();
  }
  share_rows(call, 3, call.values.rows(), thread, threads, [&](Range rows) {
    call.values.multiply(latents, rows, own.ids);
    gate_values(call, rows);
  });
  call.pool.barrier();
  Activations& mixed = one ? own.input : parts.shared_hidden;
  if (one) {
    mixed.load(call.values.y, 1, columns, columns);
  } else {
    mixed.quantize(thread, threads);
    call.pool.barrier();
  }
  share_rows(call, 4, width, thread, threads, [&](Range rows) {
    float* sums = parts.normed.need(0);
    multiply_rows(layer.output, mixed, sums, rows);
    for (int64_t t = 0; t < call.tokens; ++t) {
      const int64_t at = t * width + rows.begin;
      add_residual(call.x + at, layer.residual, sums + at, rows.end - rows.begin, call.y + at);
    }
  });
}

}  // namespace

void latent_block(const LatentLayer& layer, const KVCache* cache, int64_t offset, const float* x,
                  int64_t tokens, float* y, Workspace& work, Pool& pool) {
  Parts& parts = *work.parts;
  const int64_t heads = layer.heads, rank = layer.k_b.rows, row = layer.kv_a.rows;
  const int64_t width = layer.output.rows, columns = layer.output.cols, key = layer.q.rows / heads;
  KVCache own{CacheType::F32, tokens, 0, {}, {}};
  const Indexer& indexer = layer.indexer;
  if (!cache) {
    own.keys.values = parts.keys.need(tokens * row);
    own.values.values = parts.keys_alone.need(tokens * indexer.k.rows);
  }
  const KVCache kept = cache ? *cache : own;
  const int64_t past = cache ? offset - cache->base : 0;
  const Rotation& rotation = parts.rotations.prepare(layer.rope, offset, tokens);
  const Rotation* index_rotation =
      indexer.k.data ? &parts.rotations.prepare(indexer.rope, offset, tokens) : nullptr;
  parts.normed.need(tokens * width);
  float* queries = parts.gate.need(tokens * layer.q.rows);
  float* low = layer.q_a.data ? parts.up.need(tokens * layer.q.cols) : nullptr;
  float* absorbed = parts.absorbed.need(tokens * heads * row);
  float* mixed = parts.mixed.need(tokens * heads * rank);
  float* concatenated = parts.values.need(tokens * columns);
  RowSharing sharing[5];
  const int64_t dense = indexer.top ? std::clamp<int64_t>(indexer.top - past, 0, tokens) : tokens;
  const auto next = std::make_unique<std::atomic<int64_t>[]>(size_t(tokens - dense + 1));
  if (dense < tokens) {
    parts.rows.need(indexer.top * row);
    parts.row_scales.need(indexer.top * row / 2 + 1);
    parts.index_scores.need(past + tokens);
    if (indexer.k.data) parts.seen.resize(size_t((tokens - dense) * indexer.top));
  }
  const bool decodes = work.decodes(tokens);
  const LatentCall attention{kept.type,     kept.keys.values, kept.keys.scales, row,   rank,
                             past + tokens, absorbed,         tokens,           heads, mixed,
                             decodes};
  prepare_latent(attention, work, pool.threads());
  if (!decodes) {
    const Matrix& first = layer.q_a.data ? layer.q_a : layer.q;
    const Matrix& last = layer.gate.data ? layer.gate : layer.kv_a;
    const auto held = [](const Matrix& m, const Matrix& other) { return m.data ? &m : &other; };
    const bool tiled = gemm::tiles_serve(
        {&first, &layer.kv_a, &last, held(indexer.k, first), held(indexer.weights, first)});
    parts.input.prepare(parts.normed.need(0), tokens, width, width, tiled);
    if (low)
      parts.hidden.prepare(low, tokens, layer.q.cols, layer.q.cols,
                           gemm::tiles_serve({&layer.q, held(indexer.q, layer.q)}));
    parts.queries.prepare(queries, tokens * heads, key - layer.rope.dims, key);
    parts.latents.prepare(mixed, tokens * heads, rank, rank);
    parts.shared_hidden.prepare(concatenated, tokens, columns, columns,
                                gemm::tiles_serve({&layer.output}));
  }
  const Call call{.layer = layer,
                  .cache = kept,
                  .past = past,
                  .x = x,
                  .tokens = tokens,
                  .y = y,
                  .work = work,
                  .pool = pool,
                  .rotation = &rotation,
                  .offset = offset,
                  .low = low,
                  .kv = parts.projected.need(tokens * row),
                  .queries = queries,
                  .gates = layer.gate.data ? parts.weights.need(tokens * heads) : nullptr,
                  .absorbed = {layer.k_b, heads, tokens, absorbed, row},
                  .values = {layer.v_b, heads, tokens, concatenated, layer.v_b.rows},
                  .attention = attention,
                  .dense = dense,
                  .next = next.get(),
                  .index_rotation = index_rotation,
                  .index_queries = parts.index_queries.need(tokens * indexer.q.rows),
                  .index_keys = parts.index_keys.need(tokens * indexer.k.rows),
                  .index_weights = parts.index_weights.need(tokens * indexer.weights.rows),
                  .sharing = sharing};
  pool.run([&](int thread, int threads) {
    project(call, thread, threads);
    absorb(call, thread, threads);
    attend(call, thread, threads);
    finish(call, thread, threads);
  });
}

}  // namespace conifer::blocks
