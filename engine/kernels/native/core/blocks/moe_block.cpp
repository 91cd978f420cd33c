// Mixture of experts: apply the experts that the router (route.cpp) chooses to one token or many.
//
// One token: the threads divide the rows of all chosen experts. Many tokens: tokens are grouped by
// expert, and every thread multiplies its own rows of every expert, so that each weight is read
// once and no sums cross threads.
//
// With a store, one token's experts are multiplied as they arrive, but added in the router's order.
// Sums are the same, bit by bit, wherever the experts come from.
#include <algorithm>
#include <cmath>

#include "blocks/expert_call.h"
#include "blocks/steps.h"
#include "isa/kernels.h"

namespace conifer::blocks {

namespace {

using Parts = Workspace::Parts;
using Thread = Parts::Thread;
using store::Addresses;

constexpr int64_t TOKENS_AT_ONCE = 512;  // per expert, to limit scratch memory
constexpr int64_t ROUTER_GRAIN = 8;

float unweighted(int64_t) { return 1.0f; }

// The shared expert's weight for a token's h.
float shared_weight(const ExpertCall& call, const float* h) {
  const ExpertLayer& layer = call.layer;
  if (!layer.shared_score) return call.residual;
  float score = 0.0f;
  for (int64_t i = 0; i < layer.shared_up.cols; ++i) score += layer.shared_score[i] * h[i];
  return call.residual / (1.0f + std::exp(-score));
}

// Apply k experts and the shared expert to one token. `input` is this thread's own copy.
void one_token(const ExpertCall& call, const Activations& input, const int32_t* ids,
               const float* weights, float shared, int thread, int threads) {
  const int64_t used = call.used(), hidden = call.hidden(), width = call.width();
  const isa::KernelTable& kernels = isa::kernels();
  ExpertStore* held = call.layer.store;
  if (held) {
    if (thread == 0) held->choose(call.layer.store_layer, ids, used);
    call.pool.barrier();
  }
  const bool waits = held && !held->all_here();
  const auto at = [&](int64_t j) { return held ? held->chosen(j) : call.resident(ids[j]); };
  Thread& own = *call.parts.threads[size_t(thread)];
  float* gate = call.parts.gate.need(0);
  float* up = call.parts.up.need(0);
  const auto gate_rows = [&](const Gated& gated, int64_t start, Range rows, float weight) {
    if (gated.gate.data) multiply_rows(gated.gate, input, gate + start, rows);
    multiply_rows(gated.up, input, up + start, rows);
    gated.finish(gate + start, up + start, 1, rows, [weight](int64_t) { return weight; });
  };
  const int64_t routed = used * hidden;
  if (waits) {
    if (call.shared())
      gate_rows(call.gated_shared(), routed, share(call.shared(), thread, threads), 1.0f);
    const Range mine = share(hidden, thread, threads);
    held->each_chosen(store::INPUTS, thread, [&](int64_t j, const Addresses& found) {
      gate_rows(call.gated(ids[j], found), j * hidden, mine, call.on_input(weights[j]));
    });
  } else {
    call.hidden_rows->share_out(routed + call.shared(), thread, threads, [&](Range mine) {
      for (int64_t j = mine.begin / hidden; j < used && j * hidden < mine.end; ++j)
        gate_rows(call.gated(ids[j], at(j)), j * hidden,
                  {std::max<int64_t>(mine.begin - j * hidden, 0),
                   std::min(mine.end - j * hidden, hidden)},
                  call.on_input(weights[j]));
      if (mine.end > routed)
        gate_rows(call.gated_shared(), routed,
                  {std::max<int64_t>(mine.begin - routed, 0), mine.end - routed}, 1.0f);
    });
  }
  call.pool.barrier();
  own.hidden.load(gate, used, hidden, hidden);
  if (call.shared()) own.shared.load(gate + routed, 1, call.shared(), call.shared());
  float* made = own.out.need(used * width);  // (k, D), of which a thread writes its rows
  const auto down_rows = [&](int64_t j, const Addresses& found, Range rows) {
    float* out = made + j * width;
    gemm::matmul_rows(call.down(ids[j], found), own.hidden, own.hidden.kind(), j, j + 1, out, width,
                      rows.begin, rows.end);
    if (const float* bias = bias_of(call.layer.down_bias, ids[j], width))
      kernels.add(out + rows.begin, bias + rows.begin, rows.end - rows.begin, out + rows.begin);
  };
  const auto sum_rows = [&](Range rows) {
    const int64_t count = rows.end - rows.begin;
    float* sums = own.mixed.need(width) + rows.begin;
    std::fill(sums, sums + count, 0.0f);
    for (int64_t j = 0; j < used; ++j)
      kernels.add_scaled(made + j * width + rows.begin, call.on_result(weights[j]), count, sums);
    if (call.shared()) {
      multiply_rows(call.layer.shared_down, own.shared, made, rows);
      kernels.add_scaled(made + rows.begin, shared, count, sums);
    }
    if (call.base) kernels.add(call.base + rows.begin, sums, count, sums);
    std::copy(sums, sums + count, call.y + rows.begin);
  };
  if (waits) {
    const Range mine = share(width, thread, threads);
    held->each_chosen(store::OUTPUT, thread,
                      [&](int64_t j, const Addresses& found) { down_rows(j, found, mine); });
    return sum_rows(mine);
  }
  call.output_rows->share_out(width, thread, threads, [&](Range rows) {
    for (int64_t j = 0; j < used; ++j) down_rows(j, at(j), rows);
    sum_rows(rows);
  });
}

// With a store, read the experts that were chosen.
void plan(const ExpertCall& call, int threads) {
  Parts& parts = call.parts;
  parts.planned.clear();
  parts.last.clear();
  for (int64_t e = 0; e < call.layer.routing.experts; ++e)
    if (parts.first[size_t(e)] < parts.first[size_t(e + 1)]) {
      parts.planned.push_back(int32_t(e));
      parts.last.push_back(parts.ids[size_t(parts.first[size_t(e + 1)] - 1)]);
    }
  if (call.layer.store)
    call.layer.store->plan(call.layer.store_layer, parts.planned.data(), parts.last.data(),
                           int64_t(parts.planned.size()), {store::INPUTS, store::OUTPUT}, threads);
}

// slots[first[e] .. first[e + 1]] hold the slot numbers token * k + j for expert e and choice j.
void group_by_expert(const ExpertCall& call, const int32_t* ids, int threads) {
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
  for (int64_t e = experts; e > 0; --e)
    first[e] = first[e - 1];  // they were moved to the ends above
  first[0] = 0;
  plan(call, threads);
}

// Call fn(expert, addresses) for each chosen expert, in the order of their numbers.
template <class F>
void each_expert(const ExpertCall& call, int stage, int thread, F&& fn) {
  const std::vector<int32_t>& planned = call.parts.planned;
  if (call.layer.store)
    call.layer.store->each_planned(
        stage, thread, [&](int64_t i, const Addresses& at) { fn(planned[size_t(i)], at); });
  else
    for (const int32_t e : planned) fn(e, call.resident(e));
}

// Call fn(first slot, slots, kind) for pieces of at most TOKENS_AT_ONCE tokens of a block that
// chose the expert.
template <class F>
void each_piece(const ExpertCall& call, int64_t e, F&& fn) {
  const Parts& parts = call.parts;
  const int64_t last = parts.first[size_t(e + 1)];
  for (int64_t begin = parts.first[size_t(e)], end = begin; begin < last; begin = end) {
    const Range block = call.block_of(parts.ids[size_t(begin)]);
    while (end < last && end - begin < TOKENS_AT_ONCE && parts.ids[size_t(end)] < block.end) ++end;
    fn(begin, end - begin, gemm::routed(block.end - block.begin));
  }
}

// Process many tokens, grouped by expert. `parts.input` is quantised. shared: the shared expert's
// weights (T).
void many_tokens(const ExpertCall& call, const float* weights, const float* shared, int thread,
                 int threads) {
  const int64_t used = call.used(), hidden = call.hidden(), width = call.width();
  const isa::KernelTable& kernels = isa::kernels();
  Parts& parts = call.parts;
  float* gate = parts.gate.need(0);
  float* up = parts.up.need(0);
  const Range mine = share(hidden, thread, threads);
  each_expert(call, 0, thread, [&](int64_t e, const Addresses& at) {
    const Gated gated = call.gated(e, at);
    each_piece(call, e, [&](int64_t begin, int64_t count, gemm::Tokens kind) {
      float* rows = gate + begin * hidden;
      const int32_t* tokens = parts.ids.data() + begin;
      if (gated.gate.data)
        gemm::matmul_rows(gated.gate, parts.input, kind, tokens, count, rows, hidden, mine.begin,
                          mine.end);
      gemm::matmul_rows(gated.up, parts.input, kind, tokens, count, up, hidden, mine.begin,
                        mine.end);
      const int32_t* slots = parts.slots.data() + begin;
      gated.finish(rows, up, count, mine,
                   [&](int64_t i) { return call.on_input(weights[slots[i]]); });
    });
  });
  if (call.shared()) {
    const Gated gated = call.gated_shared();
    const Range rows = share(call.shared(), thread, threads);
    if (parts.shared_hidden.tile(0)) {
      gemm::gate_tiles(gated.gate, gated.up, parts.shared_input, parts.shared_hidden, rows.begin,
                       rows.end);
    } else {
      float* made = parts.shared.need(0);
      float* ups = parts.shared_up.need(0);  // other threads may still be using the chosen experts
      if (gated.gate.data) multiply_rows(gated.gate, parts.input, made, rows);
      multiply_rows(gated.up, parts.input, ups, rows);
      gated.finish(made, ups, call.tokens, rows, unweighted);
    }
  }
  call.pool.barrier();
  parts.hidden.quantize(thread, threads);
  if (call.shared() && !parts.shared_hidden.tile(0)) parts.shared_hidden.quantize(thread, threads);
  call.pool.barrier();
  const Range rows = share(width, thread, threads);
  const int64_t columns = rows.end - rows.begin;
  for (int64_t t = 0; t < call.tokens; ++t) {
    float* at = call.y + t * width + rows.begin;
    if (!call.base) std::fill(at, at + columns, 0.0f);
    else if (call.base != call.y)
      std::copy(call.base + t * width + rows.begin, call.base + t * width + rows.end, at);
  }
  float* out = parts.mixed.need(0);  // (piece, D): each thread writes its own columns
  each_expert(call, 1, thread, [&](int64_t e, const Addresses& at) {
    const Matrix down = call.down(e, at);
    each_piece(call, e, [&](int64_t begin, int64_t count, gemm::Tokens kind) {
      gemm::matmul_rows(down, parts.hidden, kind, begin, begin + count, out, width, rows.begin,
                        rows.end);
      for (int64_t i = 0; i < count; ++i) {
        const int32_t slot = parts.slots[size_t(begin + i)];
        float* row = out + i * width + rows.begin;
        if (const float* bias = bias_of(call.layer.down_bias, e, width))
          kernels.add(row, bias + rows.begin, columns, row);
        kernels.add_scaled(row, call.on_result(weights[slot]), columns,
                           call.y + slot / used * width + rows.begin);
      }
    });
  });
  if (!call.shared()) return;
  multiply_rows(call.layer.shared_down, parts.shared_hidden, out, rows);
  for (int64_t t = 0; t < call.tokens; ++t)
    kernels.add_scaled(out + t * width + rows.begin, shared[t], columns,
                       call.y + t * width + rows.begin);
}

// Reserve memory for the shared expert with many tokens, tiled if possible.
void prepare_shared(const ExpertCall& call, const float* input) {
  Parts& parts = call.parts;
  const ExpertLayer& layer = call.layer;
  const int64_t tokens = call.tokens, hidden = call.shared(), width = call.width();
  const bool tiled = layer.shared_gate.data && layer.shared_activation == Activation::Silu &&
                     hidden % threads::ROW_GRAIN == 0 &&
                     gemm::tiles_serve({&layer.shared_gate, &layer.shared_up, &layer.shared_down});
  float* made = tiled ? nullptr : parts.shared.need(tokens * hidden);
  if (tiled) parts.shared_input.prepare(input, tokens, width, width, true);
  else parts.shared_up.need(tokens * hidden);
  parts.shared_hidden.prepare(made, tokens, hidden, hidden, tiled);
  parts.mixed.need(tokens * width);
}

void quantize_input(const ExpertCall& call, int thread, int threads) {
  Parts& parts = call.parts;
  parts.input.quantize(thread, threads);
  if (call.shared() && parts.shared_hidden.tile(0)) parts.shared_input.quantize(thread, threads);
}

// Allocate everything the threads need. `input` holds the rows that experts receive.
void prepare(const ExpertCall& call, const float* input) {
  Parts& parts = call.parts;
  const int64_t slots = call.tokens * call.used(), hidden = call.hidden();
  const int64_t piece = std::min(call.tokens, TOKENS_AT_ONCE);
  parts.need_threads(call.pool.threads());
  const int64_t shared = call.shared();
  float* gate = parts.gate.need(slots * hidden + (call.decodes ? shared : 0));
  if (call.decodes) {
    parts.up.need(slots * hidden + shared);
    return;
  }
  parts.up.need(piece * hidden);
  parts.mixed.need(piece * call.width());
  if (shared) prepare_shared(call, input);
  parts.input.prepare(input, call.tokens, call.width(), call.width());
  parts.hidden.prepare(gate, slots, hidden, hidden);
  parts.ids.resize(size_t(slots));
  parts.slots.resize(size_t(slots));
  parts.first.resize(size_t(call.layer.routing.experts + 1));
}

// What the router reads: x (T, D), normalised in its own way. Prompts: into parts.latents.
const Activations& route_input(const ExpertCall& call, const float* x, int thread, int threads) {
  Parts& parts = call.parts;
  const ExpertLayer& layer = call.layer;
  Thread& own = *parts.threads[size_t(thread)];
  const int64_t width = call.width();
  if (!layer.router_norm.weight) return call.decodes ? own.input : parts.input;
  if (call.decodes) {
    float* normed = own.mixed.need(width);
    normalize(x, layer.router_norm, width, normed);
    own.hidden.load(normed, 1, width, width);
    return own.hidden;
  }
  const Range mine = share(call.tokens, thread, threads, 1);
  float* normed = parts.absorbed.need(0);
  for (int64_t t = mine.begin; t < mine.end; ++t)
    normalize(x + t * width, layer.router_norm, width, normed + t * width);
  call.pool.barrier();
  parts.latents.quantize(thread, threads);
  call.pool.barrier();
  return parts.latents;
}

}  // namespace

void run_experts(const ExpertLayer& layer, const float* h, int64_t tokens, const int32_t* ids,
                 const float* weights, float* y, Workspace& work, Pool& pool) {
  Parts& parts = *work.parts;
  RowSharing hidden_rows, output_rows;
  const ExpertCall call{layer,
                        nullptr,
                        tokens,
                        y,
                        parts,
                        pool,
                        &hidden_rows,
                        &output_rows,
                        work.decodes(tokens),
                        work.first_block,
                        1.0f};
  prepare(call, h);
  float* shared = parts.shared_weights.need(tokens);
  for (int64_t t = 0; t < tokens; ++t) shared[t] = shared_weight(call, h + t * call.width());
  if (!call.decodes) group_by_expert(call, ids, pool.threads());
  pool.run([&](int thread, int threads) {
    if (call.decodes) {
      Activations& input = parts.threads[size_t(thread)]->input;
      input.load(h, 1, call.width(), call.width());
      return one_token(call, input, ids, weights, *shared, thread, threads);
    }
    quantize_input(call, thread, threads);
    pool.barrier();
    many_tokens(call, weights, shared, thread, threads);
  });
  if (layer.store) layer.store->finish();
}

void moe_block(const ExpertLayer& layer, const float* x, int64_t tokens, float* y, Workspace& work,
               Pool& pool, int32_t* chosen, const float* base) {
  if (layer.latent_down.data) return latent_moe_block(layer, x, tokens, y, work, pool, chosen);
  Parts& parts = *work.parts;
  RowSharing hidden_rows, output_rows;
  const Routing& routing = layer.routing;
  const int64_t width = layer.up.cols, experts = routing.experts, used = routing.used;
  const bool ends_normed = layer.post_norm.weight;
  if (!base) base = x;
  const ExpertCall call{.layer = layer,
                        .base = ends_normed ? nullptr : base,
                        .tokens = tokens,
                        .y = ends_normed ? parts.convolved.need(tokens * width) : y,
                        .parts = parts,
                        .pool = pool,
                        .hidden_rows = &hidden_rows,
                        .output_rows = &output_rows,
                        .decodes = work.decodes(tokens),
                        .first_block = work.first_block,
                        .residual = ends_normed ? 1.0f : layer.residual};
  float* normed = parts.normed.need(tokens * width);
  float* logits = parts.logits.need(tokens * experts);
  float* weights = parts.weights.need(tokens * used);
  float* shared = parts.shared_weights.need(tokens);
  const auto choose = [&](float* scored, int32_t* best, float* weighed) {
    if (layer.router_bias) isa::kernels().add(scored, layer.router_bias, experts, scored);
    route(routing, scored, best, weighed);
  };
  parts.chosen.resize(size_t(tokens * used));
  int32_t* ids = chosen ? chosen : parts.chosen.data();
  prepare(call, normed);
  if (layer.router_norm.weight && !call.decodes)
    parts.latents.prepare(parts.absorbed.need(tokens * width), tokens, width, width);
  const auto one = [&](int thread, int threads) {
    Thread& own = *parts.threads[size_t(thread)];
    float* own_normed = own.normed.need(width);
    normalize(x, layer.norm, width, own_normed);
    own.input.load(own_normed, 1, width, width);
    multiply_rows(layer.router, route_input(call, x, thread, threads), logits,
                  share(experts, thread, threads, ROUTER_GRAIN));
    pool.barrier();
    own.ids.resize(size_t(used));
    float* own_weights = own.weights.need(used + experts);
    std::copy(logits, logits + experts, own_weights + used);
    choose(own_weights + used, own.ids.data(), own_weights);
    if (chosen && thread == 0) std::copy(own.ids.begin(), own.ids.end(), chosen);
    const float own_shared = shared_weight(call, own_normed);
    one_token(call, own.input, own.ids.data(), own_weights, own_shared, thread, threads);
  };
  const auto many = [&](int thread, int threads) {
    const Range mine = share(tokens, thread, threads, 1);
    for (int64_t t = mine.begin; t < mine.end; ++t)
      normalize(x + t * width, layer.norm, width, normed + t * width);
    pool.barrier();
    quantize_input(call, thread, threads);
    pool.barrier();
    const Activations& seen = route_input(call, x, thread, threads);
    if (mine.begin < mine.end)
      gemm::matmul_rows(layer.router, seen, seen.kind(), mine.begin, mine.end,
                        logits + mine.begin * experts, experts, 0, experts);
    for (int64_t t = mine.begin; t < mine.end; ++t) {
      choose(logits + t * experts, ids + t * used, weights + t * used);
      shared[t] = shared_weight(call, normed + t * width);
    }
    pool.barrier();
    if (thread == 0) group_by_expert(call, ids, threads);
    pool.barrier();
    many_tokens(call, weights, shared, thread, threads);
  };
  pool.run([&](int thread, int threads) {
    if (call.decodes) one(thread, threads);
    else many(thread, threads);
    if (!ends_normed) return;
    pool.barrier();
    add_normed(layer.post_norm, layer.residual, call.y, base, tokens, width, thread, threads,
               parts.threads[size_t(thread)]->out.need(width), y);
  });
  if (layer.store) layer.store->finish();
}

}  // namespace conifer::blocks
