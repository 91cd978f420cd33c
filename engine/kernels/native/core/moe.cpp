// Mixture of experts: the router's choice, and the chosen experts for one token or many.
//
// One token: the rows of the chosen experts are one line, shared out between the threads. Many:
// tokens are grouped by expert, and every thread multiplies its own rows of every expert, so that
// each weight is read once and nothing is added up across threads.
#include <algorithm>
#include <cmath>

#include "block.h"
#include "float_kernels.h"
#include "workspace.h"

namespace conifer {

namespace {

using Parts = Workspace::Parts;
using Thread = Parts::Thread;

constexpr float MIN_WEIGHT_SUM = 6.103515625e-05f;  // smallest normal float16: keeps it finite
constexpr int64_t TOKENS_AT_ONCE = 512;             // of one expert: bounds the scratch memory
constexpr int64_t ROUTER_GRAIN = 8;

Matrix expert(const Matrix& first, int64_t id) {
  Matrix matrix = first;
  matrix.data += id * first.rows * first.stride();
  return matrix;
}

struct ExpertCall {
  const ExpertLayer& layer;
  const float* x;  // added to the result, unless null
  int64_t tokens;
  float* y;
  Parts& parts;
  Pool& pool;
  RowSharing* hidden_rows;  // of one token
  RowSharing* output_rows;

  int64_t width() const { return layer.gate.cols; }
  int64_t hidden() const { return layer.gate.rows; }
  int64_t used() const { return layer.routing.used; }
};

// One token through its k experts. `input` is this thread's own.
void one_token(const ExpertCall& call, const Activations& input, const int32_t* ids,
               const float* weights, int thread, int threads) {
  const int64_t used = call.used(), hidden = call.hidden(), width = call.width();
  const FloatKernels& kernels = float_kernels();
  Thread& own = *call.parts.threads[size_t(thread)];
  float* gate = call.parts.gate.need(0);
  float* up = call.parts.up.need(0);
  call.hidden_rows->share_out(used * hidden, thread, threads, [&](Range mine) {
    for (int64_t j = mine.begin / hidden; j < used && j * hidden < mine.end; ++j) {
      const int64_t begin = std::max<int64_t>(mine.begin - j * hidden, 0);
      const int64_t end = std::min(mine.end - j * hidden, hidden);
      float* gate_row = gate + j * hidden;
      float* up_row = up + j * hidden;
      multiply_rows(expert(call.layer.gate, ids[j]), input, gate_row, {begin, end});
      multiply_rows(expert(call.layer.up, ids[j]), input, up_row, {begin, end});
      kernels.silu_multiply(gate_row + begin, up_row + begin, end - begin, gate_row + begin);
    }
  });
  call.pool.barrier();
  own.hidden.load(gate, used, hidden, hidden);
  call.output_rows->share_out(width, thread, threads, [&](Range rows) {
    const int64_t count = rows.end - rows.begin;
    float* out = own.out.need(width) + rows.begin;
    float* sums = own.mixed.need(width) + rows.begin;
    std::fill(sums, sums + count, 0.0f);
    for (int64_t j = 0; j < used; ++j) {
      matmul_rows(expert(call.layer.down, ids[j]), own.hidden, j, j + 1, out - rows.begin, width,
                  rows.begin, rows.end);
      kernels.add_scaled(out, weights[j], count, sums);
    }
    if (call.x) kernels.add(call.x + rows.begin, sums, count, sums);
    std::copy(sums, sums + count, call.y + rows.begin);
  });
}

// slots[first[e] .. first[e + 1]] are the (token, choice) numbers token * k + j of expert e.
void group_by_expert(const ExpertCall& call, const int32_t* ids) {
  Parts& parts = call.parts;
  const int64_t experts = call.layer.routing.experts, chosen = call.tokens * call.used();
  int32_t* first = parts.first.data();
  std::fill(first, first + experts + 1, 0);
  for (int64_t i = 0; i < chosen; ++i) ++first[ids[i] + 1];
  for (int64_t e = 0; e < experts; ++e) first[e + 1] += first[e];
  for (int64_t i = 0; i < chosen; ++i) {
    const int32_t slot = first[ids[i]]++;
    parts.slots[size_t(slot)] = int32_t(i);
    parts.ids[size_t(slot)] = int32_t(i / call.used());
  }
  for (int64_t e = experts; e > 0; --e) first[e] = first[e - 1];  // they had moved to the ends
  first[0] = 0;
}

// Call fn(expert, first slot, slots) for pieces of at most TOKENS_AT_ONCE.
template <class F>
void for_each_piece(const ExpertCall& call, F&& fn) {
  const std::vector<int32_t>& first = call.parts.first;
  for (int64_t e = 0; e < call.layer.routing.experts; ++e)
    for (int64_t begin = first[size_t(e)], end = first[size_t(e + 1)]; begin < end;) {
      const int64_t count = std::min(end - begin, TOKENS_AT_ONCE);
      fn(e, begin, count);
      begin += count;
    }
}

// Many tokens, grouped; `parts.input` is quantised.
void many_tokens(const ExpertCall& call, const float* weights, int thread, int threads) {
  const int64_t used = call.used(), hidden = call.hidden(), width = call.width();
  const FloatKernels& kernels = float_kernels();
  Parts& parts = call.parts;
  float* gate = parts.gate.need(0);
  float* up = parts.up.need(0);
  const Range mine = share(hidden, thread, threads);
  for_each_piece(call, [&](int64_t e, int64_t begin, int64_t count) {
    float* rows = gate + begin * hidden;
    const int32_t* tokens = parts.ids.data() + begin;
    matmul_rows(expert(call.layer.gate, e), parts.input, tokens, count, rows, hidden, mine.begin,
                mine.end);
    matmul_rows(expert(call.layer.up, e), parts.input, tokens, count, up, hidden, mine.begin,
                mine.end);
    for (int64_t i = 0; i < count; ++i) {
      float* at = rows + i * hidden + mine.begin;
      kernels.silu_multiply(at, up + i * hidden + mine.begin, mine.end - mine.begin, at);
    }
  });
  call.pool.barrier();
  parts.hidden.quantize(thread, threads);
  call.pool.barrier();
  const Range rows = share(width, thread, threads);
  const int64_t columns = rows.end - rows.begin;
  for (int64_t t = 0; t < call.tokens; ++t) {
    float* at = call.y + t * width + rows.begin;
    if (!call.x) std::fill(at, at + columns, 0.0f);
    else if (call.x != call.y)
      std::copy(call.x + t * width + rows.begin, call.x + t * width + rows.end, at);
  }
  float* out = parts.mixed.need(0);  // (piece, D): threads write columns of their own
  for_each_piece(call, [&](int64_t e, int64_t begin, int64_t count) {
    matmul_rows(expert(call.layer.down, e), parts.hidden, begin, begin + count, out, width,
                rows.begin, rows.end);
    for (int64_t i = 0; i < count; ++i) {
      const int32_t slot = parts.slots[size_t(begin + i)];
      kernels.add_scaled(out + i * width + rows.begin, weights[slot], columns,
                         call.y + slot / used * width + rows.begin);
    }
  });
}

// Make room for everything the threads will use; `input` holds the rows that experts see.
void prepare(const ExpertCall& call, const float* input) {
  Parts& parts = call.parts;
  const int64_t slots = call.tokens * call.used(), hidden = call.hidden();
  const int64_t piece = std::min(call.tokens, TOKENS_AT_ONCE);
  parts.need_threads(call.pool.threads());
  float* gate = parts.gate.need(slots * hidden);
  parts.up.need((call.tokens == 1 ? slots : piece) * hidden);
  if (call.tokens == 1) return;
  parts.mixed.need(piece * call.width());
  parts.input.prepare(input, call.tokens, call.width(), call.width());
  parts.hidden.prepare(gate, slots, hidden, hidden);
  parts.ids.resize(size_t(slots));
  parts.slots.resize(size_t(slots));
  parts.first.resize(size_t(call.layer.routing.experts + 1));
}

}  // namespace

void route(const Routing& routing, const float* logits, int32_t* ids, float* weights) {
  const int64_t experts = routing.experts, used = routing.used;
  float top = logits[0], total = 0.0f;
  for (int64_t e = 1; e < experts; ++e) top = std::max(top, logits[e]);
  for (int64_t e = 0; e < experts; ++e) total += std::exp(logits[e] - top);
  int64_t held = 0;
  for (int64_t e = 0; e < experts; ++e) {  // insert into the sorted list of the best
    if (held == used && !(logits[e] > weights[used - 1])) continue;
    int64_t at = held < used ? held++ : used - 1;
    for (; at > 0 && logits[e] > weights[at - 1]; --at) {
      weights[at] = weights[at - 1];
      ids[at] = ids[at - 1];
    }
    weights[at] = logits[e];
    ids[at] = int32_t(e);
  }
  float sum = 0.0f;
  for (int64_t j = 0; j < used; ++j) sum += weights[j] = std::exp(weights[j] - top) / total;
  const float factor = routing.scale / (routing.renormalize ? std::max(sum, MIN_WEIGHT_SUM) : 1);
  for (int64_t j = 0; j < used; ++j) weights[j] *= factor;
}

void run_experts(const ExpertLayer& layer, const float* h, int64_t tokens, const int32_t* ids,
                 const float* weights, float* y, Workspace& work, Pool& pool) {
  Parts& parts = *work.parts;
  RowSharing hidden_rows, output_rows;
  const ExpertCall call{layer, nullptr, tokens, y, parts, pool, &hidden_rows, &output_rows};
  prepare(call, h);
  if (tokens > 1) group_by_expert(call, ids);
  pool.run([&](int thread, int threads) {
    if (tokens == 1) {
      Activations& input = parts.threads[size_t(thread)]->input;
      input.load(h, 1, call.width(), call.width());
      return one_token(call, input, ids, weights, thread, threads);
    }
    parts.input.quantize(thread, threads);
    pool.barrier();
    many_tokens(call, weights, thread, threads);
  });
}

void moe_block(const ExpertLayer& layer, const float* x, int64_t tokens, float* y,
               Workspace& work, Pool& pool, int32_t* chosen) {
  Parts& parts = *work.parts;
  RowSharing hidden_rows, output_rows;
  const ExpertCall call{layer, x, tokens, y, parts, pool, &hidden_rows, &output_rows};
  const Routing& routing = layer.routing;
  const int64_t width = call.width(), experts = routing.experts, used = routing.used;
  float* normed = parts.normed.need(tokens * width);
  float* logits = parts.logits.need(tokens * experts);
  float* weights = parts.weights.need(tokens * used);
  parts.chosen.resize(size_t(tokens * used));
  int32_t* ids = chosen ? chosen : parts.chosen.data();
  prepare(call, normed);
  pool.run([&](int thread, int threads) {
    Thread& own = *parts.threads[size_t(thread)];
    if (tokens == 1) {
      float* own_normed = own.normed.need(width);
      rms_norm(x, layer.norm, width, own_normed);
      own.input.load(own_normed, 1, width, width);
      multiply_rows(layer.router, own.input, logits,
                    share(experts, thread, threads, ROUTER_GRAIN));
      pool.barrier();
      own.ids.resize(size_t(used));
      float* own_weights = own.weights.need(used);
      route(routing, logits, own.ids.data(), own_weights);
      if (chosen && thread == 0) std::copy(own.ids.begin(), own.ids.end(), chosen);
      return one_token(call, own.input, own.ids.data(), own_weights, thread, threads);
    }
    const Range mine = share(tokens, thread, threads, 1);
    for (int64_t t = mine.begin; t < mine.end; ++t)
      rms_norm(x + t * width, layer.norm, width, normed + t * width);
    pool.barrier();
    parts.input.quantize(thread, threads);
    pool.barrier();
    if (mine.begin < mine.end)
      matmul_rows(layer.router, parts.input, mine.begin, mine.end, logits + mine.begin * experts,
                  experts, 0, experts);
    for (int64_t t = mine.begin; t < mine.end; ++t)
      route(routing, logits + t * experts, ids + t * used, weights + t * used);
    pool.barrier();
    if (thread == 0) group_by_expert(call, ids);
    pool.barrier();
    many_tokens(call, weights, thread, threads);
  });
}

}  // namespace conifer
