// See latent.h. For one token, threads divide the rows and merge. For many, they divide the tokens.
#include "blocks/latent.h"

#include <algorithm>
#include <atomic>

#include "blocks/workspace.h"

namespace conifer::blocks {

using namespace attention;

namespace {

using Thread = Workspace::Parts::Thread;

HeadView view(const LatentCall& call) {
  return {call.type,    call.key_dim, call.value_dim,
          call.key_dim, call.rows,    call.rows,
          call.scales,  call.scales,  0};
}

// Copy one token's queries for heads.begin..heads.end to padded rows.
void copy_queries(const LatentCall& call, int64_t token, Range heads, float* out) {
  const int64_t dims = call.key_dim, stride = padded(dims);
  const float* row = call.queries + (token * call.heads + heads.begin) * dims;
  for (int64_t h = heads.begin; h < heads.end; ++h, row += dims, out += stride) {
    std::copy(row, row + dims, out);
    std::fill(out + dims, out + stride, 0.0f);
  }
}

int64_t slot_size(const LatentCall& call) {
  return call.heads * padded(call.value_dim) + 2 * padded(call.heads);
}

void one_token(const LatentCall& call, Workspace::Parts& parts, Pool& pool, int thread,
               int threads) {
  const int64_t width = padded(call.value_dim), tops = padded(call.heads);
  float* slots = parts.partials.need(0);
  Thread& own = *parts.threads[size_t(thread)];
  float* queries = own.queries.need(call.heads * padded(call.key_dim));
  float* scratch = own.scratch.need(attention_scratch(call.key_dim, call.value_dim));
  auto slot = [&](int i, int64_t head) {
    float* mixed = slots + i * slot_size(call);
    float* top = mixed + call.heads * width + head;
    return Partial{top, top + tops, mixed + head * width};
  };
  auto range = [&](int i) { return share(call.length, i, threads, 16); };
  const Range mine = range(thread);
  copy_queries(call, 0, {0, call.heads}, queries);
  if (mine.begin < mine.end)
    attend_one(view(call), queries, call.heads, mine.begin, mine.end, slot(thread, 0), scratch);
  pool.barrier();
  const Range heads = share(call.heads, thread, threads, 1);
  if (heads.begin >= heads.end) return;
  own.partials.clear();
  for (int i = 0; i < threads; ++i)
    if (range(i).begin < range(i).end) own.partials.push_back(slot(i, heads.begin));
  merge(own.partials.data(), int64_t(own.partials.size()), heads.end - heads.begin, call.value_dim,
        nullptr, call.out + heads.begin * call.value_dim);
}

void some_tokens(const LatentCall& call, Range tokens, Range heads, Thread& own) {
  const int64_t key_width = padded(call.key_dim), value_width = padded(call.value_dim);
  const int64_t group = heads.end - heads.begin, past = call.length - call.tokens;
  float* queries = own.queries.need(MAX_ROWS * key_width);
  float* out = own.out.need(MAX_ROWS * value_width);
  float* scratch = own.scratch.need(attention_scratch(call.key_dim, call.value_dim));
  own.sights.resize(MAX_ROWS);
  int64_t rows = 0;
  for (int64_t t = tokens.begin; t < tokens.end; ++t, rows += group) {
    copy_queries(call, t, heads, queries + rows * key_width);
    std::fill_n(own.sights.begin() + rows, group, Sight{0, past + t + 1, NO_SINK});
  }
  std::fill(queries + rows * key_width, queries + (rows + 3) / 4 * 4 * key_width, 0.0f);
  attend_many(view(call), queries, rows, own.sights.data(), out, scratch);
  for (int64_t t = tokens.begin; t < tokens.end; ++t)
    for (int64_t h = heads.begin; h < heads.end; ++h, out += value_width)
      std::copy(out, out + call.value_dim, call.out + (t * call.heads + h) * call.value_dim);
}

void many_tokens(const LatentCall& call, Workspace::Parts& parts, std::atomic<int64_t>& next,
                 int thread, int threads) {
  const int64_t group = std::min(call.heads, MAX_ROWS);
  const int64_t groups = (call.heads + group - 1) / group;
  const int64_t even = (call.tokens + threads - 1) / threads;
  const int64_t step = std::max<int64_t>(1, std::min(MAX_ROWS / group, even));
  const int64_t steps = (call.tokens + step - 1) / step;
  Thread& own = *parts.threads[size_t(thread)];
  for (int64_t i; (i = next.fetch_add(1)) < steps * groups;) {
    const int64_t last_first = steps - 1 - i / groups;  // longest first, so that none finishes late
    const int64_t token = last_first * step, head = i % groups * group;
    some_tokens(call, {token, std::min(token + step, call.tokens)},
                {head, std::min(head + group, call.heads)}, own);
  }
}

}  // namespace

void prepare_latent(const LatentCall& call, Workspace& work, int threads) {
  work.parts->need_threads(threads);
  if (call.decodes) work.parts->partials.need(threads * slot_size(call));
}

void attend_latent(const LatentCall& call, Workspace& work, Pool& pool, std::atomic<int64_t>& next,
                   int thread, int threads) {
  if (call.decodes) one_token(call, *work.parts, pool, thread, threads);
  else many_tokens(call, *work.parts, next, thread, threads);
}

void latent_attention(const LatentCall& call, Workspace& work, Pool& pool) {
  if (call.tokens == 0) return;
  prepare_latent(call, work, pool.threads());
  std::atomic<int64_t> next{0};
  pool.run(
      [&](int thread, int threads) { attend_latent(call, work, pool, next, thread, threads); });
}

}  // namespace conifer::blocks
