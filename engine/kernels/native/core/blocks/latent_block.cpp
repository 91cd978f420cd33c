// The latent-attention block. See block.h.
#include <algorithm>
#include <atomic>
#include <cmath>

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
  std::atomic<int64_t>* next;
  RowSharing* sharing;  // one per product, for a single token

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

// Copy a token's latent and rotated part, normalise and rotate the copy, and store it.
void append_row(const Call& call, int64_t token, Thread& own) {
  const int64_t rank = call.rank(), width = rank + call.turned();
  const float* from = call.kv + token * width;
  float* row = own.out.need(width);
  normalize(from, call.layer.kv_norm, rank, row);
  std::copy(from + rank, from + width, row + rank);
  turn(call, token, row + rank);
  append(call.cache, call.cache.keys, 0, call.past + token, row, width);
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
  const Product products[] = {{first, made}, {layer.kv_a, call.kv}, {layer.gate, call.gates}};
  share_rows(call, 0, first.rows + layer.kv_a.rows + layer.gate.rows, thread, threads,
             [&](Range rows) { multiply_products(products, input, rows); });
  call.pool.barrier();
  if (!two_steps) return;
  Activations& low = one ? own.hidden : parts.hidden;
  norm_rows(call, call.low, layer.q_norm, layer.q.cols, call.low, low, thread, threads);
  share_rows(call, 1, layer.q.rows, thread, threads,
             [&](Range rows) { multiply_rows(layer.q, low, call.queries, rows); });
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
  if (!cache) own.keys.values = parts.keys.need(tokens * row);
  const KVCache kept = cache ? *cache : own;
  const int64_t past = cache ? offset - cache->base : 0;
  const Rotation& rotation = parts.rotations.prepare(layer.rope, offset, tokens);
  parts.normed.need(tokens * width);
  float* queries = parts.gate.need(tokens * layer.q.rows);
  float* low = layer.q_a.data ? parts.up.need(tokens * layer.q.cols) : nullptr;
  float* absorbed = parts.absorbed.need(tokens * heads * row);
  float* mixed = parts.mixed.need(tokens * heads * rank);
  float* concatenated = parts.values.need(tokens * columns);
  RowSharing sharing[5];
  std::atomic<int64_t> next{0};
  const bool decodes = work.decodes(tokens);
  const LatentCall attention{kept.type,     kept.keys.values, kept.keys.scales, row,   rank,
                             past + tokens, absorbed,         tokens,           heads, mixed,
                             decodes};
  prepare_latent(attention, work, pool.threads());
  if (!decodes) {
    const Matrix& first = layer.q_a.data ? layer.q_a : layer.q;
    const Matrix& last = layer.gate.data ? layer.gate : layer.kv_a;
    const bool tiled = gemm::tiles_serve({&first, &layer.kv_a, &last});
    parts.input.prepare(parts.normed.need(0), tokens, width, width, tiled);
    if (low)
      parts.hidden.prepare(low, tokens, layer.q.cols, layer.q.cols, gemm::tiles_serve({&layer.q}));
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
                  .next = &next,
                  .sharing = sharing};
  pool.run([&](int thread, int threads) {
    project(call, thread, threads);
    absorb(call, thread, threads);
    attend_latent(call.attention, work, pool, next, thread, threads);
    pool.barrier();
    finish(call, thread, threads);
  });
}

}  // namespace conifer::blocks
