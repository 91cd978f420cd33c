// The attention block. See block.h.
//
// One token is the hot path. Every thread normalises and quantises its own copy of the input, so a
// barrier is needed only before a thread reads products from other threads.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "blocks/steps.h"
#include "isa/kernels.h"

namespace conifer::blocks {

using namespace attention;

float Temperature::at(int64_t position) const {
  if (scale == 0.0f) return 1.0f;
  return 1.0f + scale * std::log1p(float((position + shift) / length));
}

namespace {

using Thread = Workspace::Parts::Thread;

// State shared by the threads in one attention_block call.
struct AttentionCall {
  const AttentionLayer& layer;
  KVCache cache;
  int64_t offset;  // position of the first token
  int64_t past;    // tokens already in the cache
  const float* x;
  const float* base;
  int64_t tokens;
  float* y;
  Workspace::Parts& parts;
  Pool& pool;
  const Rotation* rotation;  // null: none
  float* projected;          // (T, width): queries, keys, values, gates
  int64_t width, group, query_step, key_start, value_start, gate_start;
  std::atomic<int64_t>* next;
  RowSharing* projected_rows;  // for a single token
  RowSharing* output_rows;

  int64_t length() const { return past + tokens; }
};

// Normalise one head, unless its whole projection was normalised, and rotate it.
void rotate_head(const AttentionCall& call, const Norm& norm, int64_t token, float* x) {
  const bool normed = norm.weight && !call.layer.whole_norms;
  if (normed && !call.layer.norms_last) normalize(x, norm, call.layer.key_dim, x);
  if (call.rotation)
    rotate(x, call.rotation->cosines(token), call.rotation->sines(token), call.layer.rope.dims,
           call.layer.rope.interleaved);
  if (normed && call.layer.norms_last) normalize(x, norm, call.layer.key_dim, x);
}

// Normalise all of a token's queries or keys together, if the layer does so.
void norm_whole(const AttentionCall& call, const Norm& norm, int64_t n, const float* x, float* y) {
  if (norm.weight && call.layer.whole_norms) normalize(x, norm, n, y);
  else if (x != y) std::copy(x, x + n, y);
}

// `key` is the token's key, which is rotated in place. If keys are also the values, the values are
// read first.
void append_token(const AttentionCall& call, int64_t head, int64_t token, float* key, Thread& own) {
  const AttentionLayer& layer = call.layer;
  const float* value =
      call.projected + token * call.width + call.value_start + head * layer.value_dim;
  if (layer.v_norm.weight) {
    float* normed = own.out.need(layer.value_dim);
    normalize(value, layer.v_norm, layer.value_dim, normed);
    value = normed;
  }
  append(call.cache, call.cache.values, head, call.past + token, value, layer.value_dim);
  rotate_head(call, layer.k_norm, token, key);
  append(call.cache, call.cache.keys, head, call.past + token, key, layer.key_dim);
}

// The first cached token that a token attends to.
int64_t first_seen(const AttentionCall& call, int64_t token) {
  const int64_t window = call.layer.window;
  if (!window) return 0;
  const int64_t position = call.offset + token, cached_from = call.offset - call.past;
  const int64_t first = call.layer.chunked ? position / window * window : position + 1 - window;
  return std::max<int64_t>(first - cached_from, 0);
}

// The cache for one kv head.
HeadView cached_head(const AttentionCall& call, int64_t head) {
  HeadView view = head_view(call.cache, head, call.layer.key_dim, call.layer.value_dim);
  view.score_cap = call.layer.score_cap;
  return view;
}

// Copy a token's queries for one kv head from `all` of its queries to padded rows. Scales them, and
// normalises and rotates them if that has not been done.
void copy_queries(const AttentionCall& call, int64_t head, int64_t token, const float* all,
                  bool turned, float* out) {
  const AttentionLayer& layer = call.layer;
  const int64_t dims = layer.key_dim, stride = padded(dims);
  const float* row = all + head * call.group * call.query_step;
  for (int64_t g = 0; g < call.group; ++g, row += call.query_step, out += stride) {
    std::copy(row, row + dims, out);
    std::fill(out + dims, out + stride, 0.0f);
    if (!turned) rotate_head(call, layer.q_norm, token, out);
    isa::kernels().scale(out, layer.scale * layer.temperature.at(call.offset + token), dims, out);
  }
}

float gate_factor(Gate kind, float gate) {
  if (kind == Gate::Sigmoid) return 1.0f / (1.0f + std::exp(-gate));
  return gate > 20.0f ? gate : std::log1p(std::exp(gate));
}

// Multiply a head's result by its gate, if it has one. out may be `mixed`.
void finish_head(const AttentionCall& call, int64_t head, int64_t token, const float* mixed,
                 float* out) {
  const AttentionLayer& layer = call.layer;
  const int64_t n = layer.value_dim, gates = layer.gate.rows / layer.heads;  // per head
  const float* row = call.projected + token * call.width;
  const float* gate = row + call.gate_start + head * gates;
  const isa::KernelTable& kernels = isa::kernels();
  if (layer.gated) {
    kernels.sigmoid_multiply(row + head * call.query_step + layer.key_dim, mixed, n, out);
  } else if (gates == 1) {
    kernels.scale(mixed, gate_factor(layer.gate_kind, *gate), n, out);
  } else if (gates && layer.gate_kind == Gate::Sigmoid) {
    kernels.sigmoid_multiply(gate, mixed, n, out);
  } else if (gates) {
    for (int64_t i = 0; i < n; ++i) out[i] = mixed[i] * gate_factor(layer.gate_kind, gate[i]);
  } else if (out != mixed) {
    std::copy(mixed, mixed + n, out);
  }
}

void attend_range(const AttentionCall& call, int thread, int threads, Thread& own);
void merge_ranges(const AttentionCall& call, int threads, Thread& own, float* out);

// Compute some rows of the output projection and, unless they must be normalised first, the
// block's result.
void finish(const AttentionCall& call, const Activations& mixed, Range rows) {
  const AttentionLayer& layer = call.layer;
  const int64_t width = layer.output.rows;
  const Projection output{&layer.output, layer.output_bias};
  float* sums = call.parts.normed.need(0);
  multiply_range(&output, 1, mixed, call.tokens, sums, width, rows);
  for (int64_t t = 0; t < call.tokens && !layer.post_norm.weight; ++t) {
    const int64_t at = t * width + rows.begin;
    add_residual(call.base + at, layer.residual, sums + at, rows.end - rows.begin, call.y + at);
  }
}

// Normalise the rows that all threads have finished, if the layer does so.
void finish_normed(const AttentionCall& call, int thread, int threads) {
  const AttentionLayer& layer = call.layer;
  if (!layer.post_norm.weight) return;
  call.pool.barrier();
  const int64_t width = layer.output.rows;
  add_normed(layer.post_norm, layer.residual, call.parts.normed.need(0), call.base, call.tokens,
             width, thread, threads, call.parts.threads[size_t(thread)]->out.need(width), call.y);
}

void project(const AttentionCall& call, const Activations& input, Range rows) {
  const AttentionLayer& layer = call.layer;
  const Projection projections[] = {{&layer.q, layer.q_bias},
                                    {&layer.k, layer.k_bias},
                                    {&layer.v, layer.v_bias},
                                    {&layer.gate, nullptr}};
  multiply_range(projections, 4, input, call.tokens, call.projected, call.width, rows);
}

void one_token(const AttentionCall& call, int thread, int threads) {
  const AttentionLayer& layer = call.layer;
  Thread& own = *call.parts.threads[size_t(thread)];
  float* normed = own.normed.need(layer.q.cols);
  normalize(call.x, layer.norm, layer.q.cols, normed);
  own.input.load(normed, 1, layer.q.cols, layer.q.cols);
  call.projected_rows->share_out(call.width, thread, threads,
                                 [&](Range rows) { project(call, own.input, rows); });
  call.pool.barrier();
  attend_range(call, thread, threads, own);
  call.pool.barrier();
  const int64_t mixed_width = layer.output.cols;
  float* mixed = own.mixed.need(mixed_width);
  merge_ranges(call, threads, own, mixed);
  own.hidden.load(mixed, 1, mixed_width, mixed_width);
  call.output_rows->share_out(layer.output.rows, thread, threads,
                              [&](Range rows) { finish(call, own.hidden, rows); });
  finish_normed(call, thread, threads);
}

// A share of all (kv head, position) pairs that one token attends to. Each thread gets the same
// number of pairs, regardless of the number of heads.
Range head_range(const AttentionCall& call, int64_t head, int thread, int threads) {
  const int64_t first = first_seen(call, 0), length = call.length() - first;
  const int64_t start = head * length;
  const Range all = share(call.layer.kv_heads * length, thread, threads, 16);
  return {first + std::clamp<int64_t>(all.begin - start, 0, length),
          first + std::clamp<int64_t>(all.end - start, 0, length)};
}

Partial partial_slot(const AttentionCall& call, int64_t head, int thread) {
  const int64_t group = call.group, size = group * (padded(call.layer.value_dim) + 16);
  float* slot = call.parts.partials.need(0) + (thread * call.layer.kv_heads + head) * size;
  return {slot, slot + group, slot + 16 * group};
}

void attend_range(const AttentionCall& call, int thread, int threads, Thread& own) {
  const AttentionLayer& layer = call.layer;
  float* queries = own.queries.need(call.group * padded(layer.key_dim));
  float* scratch = own.scratch.need(attention_scratch(layer.key_dim, layer.value_dim));
  // Copy all queries and keys, because whole-projection norms need the projected values.
  float* all = own.mixed.need(layer.q.rows + layer.k.rows);
  float* keys = all + layer.q.rows;
  norm_whole(call, layer.q_norm, layer.q.rows, call.projected, all);
  norm_whole(call, layer.k_norm, layer.k.rows, call.projected + call.key_start, keys);
  for (int64_t head = 0; head < layer.kv_heads; ++head) {
    const Range range = head_range(call, head, thread, threads);
    if (range.begin >= range.end) continue;
    if (range.end == call.length() && layer.k.data)
      append_token(call, head, 0, keys + head * layer.key_dim, own);
    copy_queries(call, head, 0, all, false, queries);
    attend_one(cached_head(call, head), queries, call.group, range.begin, range.end,
               partial_slot(call, head, thread), scratch);
  }
}

void merge_ranges(const AttentionCall& call, int threads, Thread& own, float* out) {
  const AttentionLayer& layer = call.layer;
  for (int64_t head = 0; head < layer.kv_heads; ++head) {
    own.partials.clear();
    for (int thread = 0; thread < threads; ++thread) {
      const Range range = head_range(call, head, thread, threads);
      if (range.begin < range.end) own.partials.push_back(partial_slot(call, head, thread));
    }
    float* mixed = out + head * call.group * layer.value_dim;
    merge(own.partials.data(), int64_t(own.partials.size()), call.group, layer.value_dim,
          layer.sinks ? layer.sinks + head * call.group : nullptr, mixed);
    for (int64_t g = 0; g < call.group; ++g, mixed += layer.value_dim)
      finish_head(call, head * call.group + g, 0, mixed, mixed);
  }
}

// Compute attention for consecutive tokens and one kv head.
void attend_tokens(const AttentionCall& call, int64_t head, Range tokens, Thread& own) {
  const AttentionLayer& layer = call.layer;
  const int64_t key_width = padded(layer.key_dim), value_width = padded(layer.value_dim);
  float* queries = own.queries.need(MAX_ROWS * key_width);
  float* out = own.out.need(MAX_ROWS * value_width);
  float* scratch = own.scratch.need(attention_scratch(layer.key_dim, layer.value_dim));
  own.sights.resize(MAX_ROWS);
  int64_t rows = 0;
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    copy_queries(call, head, t, call.projected + t * call.width, true, queries + rows * key_width);
    for (int64_t g = 0; g < call.group; ++g) {
      const float sink = layer.sinks ? layer.sinks[head * call.group + g] : NO_SINK;
      own.sights[size_t(rows++)] = {first_seen(call, t), call.past + t + 1, sink};
    }
  }
  std::fill(queries + rows * key_width, queries + (rows + 3) / 4 * 4 * key_width, 0.0f);
  attend_many(cached_head(call, head), queries, rows, own.sights.data(), out, scratch);
  float* mixed = call.parts.mixed.need(0);
  for (int64_t t = tokens.begin; t < tokens.end; ++t)
    for (int64_t g = 0; g < call.group; ++g, out += value_width)
      finish_head(call, head * call.group + g, t, out,
                  mixed + t * layer.output.cols + (head * call.group + g) * layer.value_dim);
}

void many_tokens(const AttentionCall& call, int thread, int threads) {
  const AttentionLayer& layer = call.layer;
  Workspace::Parts& parts = call.parts;
  Thread& own = *parts.threads[size_t(thread)];
  const int64_t width = layer.q.cols;
  const Range tokens = share(call.tokens, thread, threads, 1);
  for (int64_t t = tokens.begin; t < tokens.end; ++t)
    normalize(call.x + t * width, layer.norm, width, parts.normed.need(0) + t * width);
  call.pool.barrier();
  parts.input.quantize(thread, threads);
  call.pool.barrier();
  project(call, parts.input, share(call.width, thread, threads));
  call.pool.barrier();
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    float* row = call.projected + t * call.width;
    float* keys = row + call.key_start;
    norm_whole(call, layer.q_norm, layer.q.rows, row, row);
    norm_whole(call, layer.k_norm, layer.k.rows, keys, keys);
    for (int64_t h = 0; h < layer.heads; ++h)
      rotate_head(call, layer.q_norm, t, row + h * call.query_step);
    for (int64_t h = 0; h < layer.kv_heads && layer.k.data; ++h)
      append_token(call, h, t, keys + h * layer.key_dim, own);
  }
  call.pool.barrier();
  // The last tokens need the most work. Starting with them leaves small pieces for the end.
  const int64_t at_once = std::max<int64_t>(MAX_ROWS / call.group, 1);
  const int64_t pieces = (call.tokens + at_once - 1) / at_once;
  for (;;) {
    const int64_t item = call.next->fetch_add(1, std::memory_order_relaxed);
    if (item >= pieces * layer.kv_heads) break;
    const int64_t piece = pieces - 1 - item / layer.kv_heads;
    const Range piece_tokens{piece * at_once, std::min((piece + 1) * at_once, call.tokens)};
    attend_tokens(call, item % layer.kv_heads, piece_tokens, own);
  }
  call.pool.barrier();
  parts.hidden.quantize(thread, threads);
  call.pool.barrier();
  finish(call, parts.hidden, share(layer.output.rows, thread, threads));
  finish_normed(call, thread, threads);
}

}  // namespace

void attention_block(const AttentionLayer& layer, const KVCache* cache, int64_t offset,
                     const float* x, int64_t tokens, float* y, Workspace& work, Pool& pool,
                     const float* base) {
  Workspace::Parts& parts = *work.parts;
  const int64_t gate_start = layer.q.rows + layer.k.rows + layer.v.rows;
  const int64_t width = gate_start + layer.gate.rows;
  const int threads = pool.threads();
  parts.need_threads(threads);
  const Rotation* rotation =
      layer.rope.dims ? &parts.rotations.prepare(layer.rope, offset, tokens) : nullptr;
  float* normed = parts.normed.need(tokens * layer.q.cols);
  const bool decodes = work.decodes(tokens);
  if (decodes) {
    parts.partials.need(threads * layer.heads * (padded(layer.value_dim) + 16));
  } else {
    float* mixed = parts.mixed.need(tokens * layer.output.cols);
    const auto held = [&](const Matrix& matrix) { return matrix.data ? &matrix : &layer.q; };
    parts.input.prepare(
        normed, tokens, layer.q.cols, layer.q.cols,
        gemm::tiles_serve({&layer.q, held(layer.k), held(layer.v), held(layer.gate)}));
    parts.hidden.prepare(mixed, tokens, layer.output.cols, layer.output.cols,
                         gemm::tiles_serve({&layer.output}));
  }
  KVCache own{CacheType::F32, tokens, 0, {}, {}};
  if (!cache) {
    own.keys.values = parts.keys.need(tokens * layer.k.rows);
    own.values.values = parts.values.need(tokens * layer.kv_heads * layer.value_dim);
  }
  std::atomic<int64_t> next{0};
  RowSharing projected_rows, output_rows;
  const AttentionCall call{.layer = layer,
                           .cache = cache ? *cache : own,
                           .offset = offset,
                           .past = cache ? offset - cache->base : 0,
                           .x = x,
                           .base = base ? base : x,
                           .tokens = tokens,
                           .y = y,
                           .parts = parts,
                           .pool = pool,
                           .rotation = rotation,
                           .projected = parts.projected.need(tokens * width),
                           .width = width,
                           .group = layer.heads / layer.kv_heads,
                           .query_step = layer.key_dim * (layer.gated ? 2 : 1),
                           .key_start = layer.q.rows,
                           .value_start = layer.q.rows + (layer.v.data ? layer.k.rows : 0),
                           .gate_start = gate_start,
                           .next = &next,
                           .projected_rows = &projected_rows,
                           .output_rows = &output_rows};
  pool.run([&](int thread, int count) {
    if (decodes) one_token(call, thread, count);
    else many_tokens(call, thread, count);
  });
}

}  // namespace conifer::blocks
