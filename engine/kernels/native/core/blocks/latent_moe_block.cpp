// Mixture of latent experts: the routed experts read a projection of the input and write what
// another projection turns into the output; the router and the shared expert do not.
#include <algorithm>

#include "blocks/steps.h"
#include "isa/kernels.h"

namespace conifer::blocks {

using Thread = Workspace::Parts::Thread;

namespace {

// Normalise x (T, D), route it, and compute the routed experts' input `low` (T, W).
void route_all(const ExpertLayer& layer, const float* x, int64_t tokens, float* low, int32_t* ids,
               float* weights, Workspace& work, Pool& pool) {
  Workspace::Parts& parts = *work.parts;
  const Routing& routing = layer.routing;
  const int64_t width = layer.router.cols, experts = routing.experts, used = routing.used;
  const bool one = work.decodes(tokens);
  float* normed = parts.normed.need(tokens * width);
  float* logits = parts.logits.need(tokens * experts);
  if (!one) parts.input.prepare(normed, tokens, width, width);
  const Product products[] = {{layer.router, logits}, {layer.latent_down, low}};
  RowSharing sharing;
  pool.run([&](int thread, int threads) {
    Thread& own = *parts.threads[size_t(thread)];
    const Range mine = share(tokens, thread, threads, 1);
    const int64_t rows = experts + layer.latent_down.rows;
    if (one) {
      float* own_normed = own.normed.need(width);
      normalize(x, layer.norm, width, own_normed);
      own.input.load(own_normed, 1, width, width);
      sharing.share_out(rows, thread, threads,
                        [&](Range range) { multiply_products(products, own.input, range); });
    } else {
      for (int64_t t = mine.begin; t < mine.end; ++t)
        normalize(x + t * width, layer.norm, width, normed + t * width);
      pool.barrier();
      parts.input.quantize(thread, threads);
      pool.barrier();
      multiply_products(products, parts.input, share(rows, thread, threads));
    }
    pool.barrier();
    for (int64_t t = mine.begin; t < mine.end; ++t) {
      float* scored = logits + t * experts;
      if (layer.router_bias) isa::kernels().add(scored, layer.router_bias, experts, scored);
      route(routing, scored, ids + t * used, weights + t * used);
    }
  });
}

// y (T, D) += residual * latent_up(mixed (T, W)).
void raise(const ExpertLayer& layer, const float* mixed, int64_t tokens, float* y, Workspace& work,
           Pool& pool) {
  Workspace::Parts& parts = *work.parts;
  const int64_t width = layer.latent_up.rows, latent = layer.latent_up.cols;
  const bool one = work.decodes(tokens);
  float* sums = parts.normed.need(tokens * width);
  if (!one) parts.input.prepare(mixed, tokens, latent, latent);
  RowSharing sharing;
  pool.run([&](int thread, int threads) {
    Activations& input = one ? parts.threads[size_t(thread)]->input : parts.input;
    if (one) {
      input.load(mixed, 1, latent, latent);
    } else {
      input.quantize(thread, threads);
      pool.barrier();
    }
    const auto rows_of = [&](Range rows) {
      multiply_rows(layer.latent_up, input, sums, rows);
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t at = t * width + rows.begin;
        add_residual(y + at, layer.residual, sums + at, rows.end - rows.begin, y + at);
      }
    };
    if (one) sharing.share_out(width, thread, threads, rows_of);
    else rows_of(share(width, thread, threads));
  });
}

}  // namespace

void latent_moe_block(const ExpertLayer& layer, const float* x, int64_t tokens, float* y,
                      Workspace& work, Pool& pool, int32_t* chosen) {
  Workspace::Parts& parts = *work.parts;
  const int64_t width = layer.router.cols, latent = layer.latent_down.rows;
  const int64_t used = layer.routing.used;
  parts.need_threads(pool.threads());
  parts.chosen.resize(size_t(tokens * used));
  int32_t* ids = chosen ? chosen : parts.chosen.data();
  float* weights = parts.weights.need(tokens * used);
  float* low = parts.absorbed.need(tokens * latent);
  float* mixed = parts.values.need(tokens * latent);
  route_all(layer, x, tokens, low, ids, weights, work, pool);
  ExpertLayer routed = layer;
  routed.shared_gate = routed.shared_up = routed.shared_down = {};
  routed.shared_score = nullptr;
  run_experts(routed, low, tokens, ids, weights, mixed, work, pool);
  if (layer.shared_up.data) {
    const DenseLayer shared{layer.norm,        layer.shared_gate, layer.shared_up,
                            layer.shared_down, layer.residual,    layer.shared_activation,
                            layer.shared_limit};
    dense_block(shared, x, tokens, y, work, pool);
  } else if (x != y) {
    std::copy(x, x + tokens * width, y);
  }
  raise(layer, mixed, tokens, y, work, pool);
}

}  // namespace conifer::blocks
