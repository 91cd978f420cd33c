// The dense feed-forward block. See block.h.
//
// One token is the hot path. Every thread normalises and quantises its own copy of the input, so a
// barrier is needed only before a thread reads products from other threads.
#include "blocks/steps.h"

namespace conifer::blocks {

using Thread = Workspace::Parts::Thread;

void dense_block(const DenseLayer& layer, const float* x, int64_t tokens, float* y, Workspace& work,
                 Pool& pool) {
  Workspace::Parts& parts = *work.parts;
  const int64_t width = layer.up.cols, hidden = layer.up.rows;
  parts.need_threads(pool.threads());
  float* normed = parts.normed.need(tokens * width);
  const bool one = work.decodes(tokens);
  const bool gated = layer.gate.data;
  const bool tiled = !one && gated && hidden % threads::ROW_GRAIN == 0 &&
                     gemm::tiles_serve({&layer.gate, &layer.up, &layer.down});
  float* gate = tiled ? nullptr : parts.gate.need(tokens * hidden);
  float* up = tiled ? nullptr : parts.up.need(tokens * hidden);
  if (!one) {
    parts.input.prepare(normed, tokens, width, width, tiled);
    parts.hidden.prepare(gate, tokens, hidden, hidden, tiled);
  }
  const isa::KernelTable& kernels = isa::kernels();
  RowSharing hidden_rows, output_rows;  // for a single token
  pool.run([&](int thread, int threads) {
    Thread& own = *parts.threads[size_t(thread)];
    Activations& input = one ? own.input : parts.input;
    Activations& middle = one ? own.hidden : parts.hidden;
    if (one) {
      float* own_normed = own.normed.need(width);
      rms_norm(x, layer.norm, width, own_normed);
      input.load(own_normed, 1, width, width);
    } else {
      const Range mine = share(tokens, thread, threads, 1);
      for (int64_t t = mine.begin; t < mine.end; ++t)
        rms_norm(x + t * width, layer.norm, width, normed + t * width);
      pool.barrier();
      input.quantize(thread, threads);
      pool.barrier();
    }
    const auto gate_rows = [&](Range rows) {
      if (tiled) return gemm::gate_tiles(layer.gate, layer.up, input, middle, rows.begin, rows.end);
      if (gated) multiply_rows(layer.gate, input, gate, rows);
      multiply_rows(layer.up, input, up, rows);
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t at = t * hidden + rows.begin, count = rows.end - rows.begin;
        if (gated) kernels.silu_multiply(gate + at, up + at, count, gate + at);
        else squared_relu(up + at, count, gate + at);
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
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t at = t * width + rows.begin;
        add_residual(x + at, layer.residual, normed + at, rows.end - rows.begin, y + at);
      }
    };
    if (one) output_rows.share_out(width, thread, threads, down_rows);
    else down_rows(share(width, thread, threads));
  });
}

}  // namespace conifer::blocks
