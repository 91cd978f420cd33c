// The dense feed-forward block. See block.h.
//
// One token is the hot path. Every thread normalises and quantises its own copy of the input, so a
// barrier is needed only before a thread reads products from other threads.
#include "blocks/steps.h"

namespace conifer::blocks {

using Thread = Workspace::Parts::Thread;

void dense_block(const DenseLayer& layer, const float* x, int64_t tokens, float* y, Workspace& work,
                 Pool& pool, const float* base, Given given) {
  Workspace::Parts& parts = *work.parts;
  const int64_t width = layer.down.rows, hidden = layer.down.cols;
  if (!base) base = x;
  parts.need_threads(pool.threads());
  float* normed = parts.normed.need(tokens * width);
  const bool one = work.decodes(tokens);
  const bool gated = layer.gate.data;
  const bool tiled = !one && gated && layer.up.data && layer.activation == Activation::Silu &&
                     hidden % threads::ROW_GRAIN == 0 &&
                     gemm::tiles_serve({&layer.gate, &layer.up, &layer.down});
  float* gate = tiled ? nullptr : parts.gate.need(tokens * hidden);
  float* up = tiled ? nullptr : parts.up.need(tokens * hidden);
  const float* seen = layer.norm.weight ? normed : x;  // what the projections read
  if (!one) {
    parts.input.prepare(seen, tokens, width, width, tiled);
    parts.hidden.prepare(gate, tokens, hidden, hidden, tiled);
  }
  RowSharing hidden_rows, output_rows;  // for a single token
  pool.run([&](int thread, int threads) {
    Thread& own = *parts.threads[size_t(thread)];
    Activations& input = one ? own.input : parts.input;
    Activations& middle = one ? own.hidden : parts.hidden;
    if (one) {
      float* own_normed = own.normed.need(width);
      if (layer.norm.weight) normalize(x, layer.norm, width, own_normed);
      input.load(layer.norm.weight ? own_normed : x, 1, width, width);
    } else {
      const Range mine = share(tokens, thread, threads, 1);
      for (int64_t t = mine.begin; t < mine.end && layer.norm.weight; ++t)
        normalize(x + t * width, layer.norm, width, normed + t * width);
      pool.barrier();
      input.quantize(thread, threads);
      pool.barrier();
    }
    const auto gate_rows = [&](Range rows) {
      if (tiled) return gemm::gate_tiles(layer.gate, layer.up, input, middle, rows.begin, rows.end);
      if (gated) multiply_rows(layer.gate, input, gate, rows);
      if (layer.up.data) multiply_rows(layer.up, input, up, rows);
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t at = t * hidden + rows.begin, count = rows.end - rows.begin;
        const float* other =
            layer.up.data ? up + at : given.values + t * given.stride + layer.given_at + rows.begin;
        if (gated) activate(layer.activation, layer.limit, gate + at, other, count, gate + at);
        else squared_relu(other, count, gate + at);
      }
    };
    if (one) hidden_rows.share_out(hidden, thread, threads, gate_rows);
    else gate_rows(share(hidden, thread, threads));
    pool.barrier();
    if (one) {
      middle.load(gate, 1, hidden, hidden);
    } else if (!tiled) {
      middle.quantize(thread, threads);
      pool.barrier();
    }
    const auto down_rows = [&](Range rows) {
      multiply_rows(layer.down, middle, normed, rows);
      for (int64_t t = 0; t < tokens && !layer.post_norm.weight; ++t) {
        const int64_t at = t * width + rows.begin;
        add_residual(base + at, layer.residual, normed + at, rows.end - rows.begin, y + at);
      }
    };
    if (one) output_rows.share_out(width, thread, threads, down_rows);
    else down_rows(share(width, thread, threads));
    if (!layer.post_norm.weight) return;
    pool.barrier();
    add_normed(layer.post_norm, layer.residual, normed, base, tokens, width, thread, threads,
               own.out.need(width), y);
  });
}

void end_block(const EndLayer& layer, const float* x, const float* side, int64_t tokens,
               int64_t width, float* y, Workspace& work, Pool& pool) {
  work.parts->need_threads(pool.threads());
  const auto finish = [&](Range range, Thread& own) {
    for (int64_t t = range.begin; t < range.end; ++t) {
      float* row = y + t * width;
      if (layer.norm.weight) {
        float* normed = own.out.need(width);
        normalize(side + t * width, layer.norm, width, normed);
        isa::kernels().add(x + t * width, normed, width, row);
        isa::kernels().scale(row, layer.scale, width, row);
      } else {
        isa::kernels().scale(x + t * width, layer.scale, width, row);
      }
    }
  };
  if (tokens == 1) return finish({0, 1}, *work.parts->threads[0]);
  pool.run([&](int thread, int threads) {
    finish(share(tokens, thread, threads, 1), *work.parts->threads[size_t(thread)]);
  });
}

}  // namespace conifer::blocks
