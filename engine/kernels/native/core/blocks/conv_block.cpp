// The short-convolution block. See block.h.
#include "blocks/steps.h"
#include "recurrent/recurrence.h"

namespace conifer::blocks {

using Parts = Workspace::Parts;
using Thread = Parts::Thread;

namespace {

// y = x y, for n values.
void multiply_into(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] *= x[i];
}

struct ConvCall {
  const ConvLayer& layer;
  const RecurrentStates& states;
  int64_t tokens;
  float* projected;  // (T, 3D): the gate before the convolution, the one after it, values
  float* mixed;      // (T, D)
  const float* nothing;

  // Gate and convolve some channels, and save their tails.
  void convolve(Range channels) const {
    const int64_t width = layer.output.cols, count = channels.end - channels.begin;
    float* values = projected + 2 * width;
    for (int64_t t = 0; t < tokens; ++t) {
      const float* before = projected + 3 * t * width + channels.begin;
      multiply_into(before, count, values + 3 * t * width + channels.begin);
    }
    const recurrent::Convolution call{values,       states.from ? states.from->tail : nothing,
                                      layer.taps,   nullptr,
                                      tokens,       width,
                                      layer.kernel, 3 * width,
                                      false};
    isa::kernels().convolve(call, channels.begin, channels.end, mixed);
    const auto save = [&](const RecurrentState* state, int64_t length) {
      if (state) recurrent::copy_tail(call, length, channels.begin, channels.end, state->tail);
    };
    save(states.mark, states.mark_tokens);
    save(states.end, tokens);
    for (int64_t t = 0; t < tokens; ++t) {
      const float* after = projected + (3 * t + 1) * width + channels.begin;
      multiply_into(after, count, mixed + t * width + channels.begin);
    }
  }
};

}  // namespace

void conv_block(const ConvLayer& layer, const RecurrentStates& states, const float* x,
                int64_t tokens, float* y, Workspace& work, Pool& pool) {
  Parts& parts = *work.parts;
  const int64_t width = layer.output.rows;
  const bool one = work.decodes(tokens);
  parts.need_threads(pool.threads());
  float* normed = parts.normed.need(tokens * width);
  float* nothing = states.from ? nullptr : parts.nothing.need((layer.kernel - 1) * width);
  if (nothing) std::fill(nothing, nothing + (layer.kernel - 1) * width, 0.0f);
  const ConvCall call{layer,
                      states,
                      tokens,
                      parts.projected.need(tokens * layer.input.rows),
                      parts.mixed.need(tokens * width),
                      nothing};
  if (!one) {
    parts.input.prepare(normed, tokens, width, width, gemm::tiles_serve({&layer.input}));
    parts.hidden.prepare(call.mixed, tokens, width, width, gemm::tiles_serve({&layer.output}));
  }
  RowSharing projected_rows, output_rows;  // for a single token
  pool.run([&](int thread, int threads) {
    Thread& own = *parts.threads[size_t(thread)];
    Activations& input = one ? own.input : parts.input;
    Activations& middle = one ? own.hidden : parts.hidden;
    if (one) {
      float* own_normed = own.normed.need(width);
      normalize(x, layer.norm, width, own_normed);
      input.load(own_normed, 1, width, width);
    } else {
      const Range mine = share(tokens, thread, threads, 1);
      for (int64_t t = mine.begin; t < mine.end; ++t)
        normalize(x + t * width, layer.norm, width, normed + t * width);
      pool.barrier();
      input.quantize(thread, threads);
      pool.barrier();
    }
    const auto project = [&](Range rows) {
      multiply_rows(layer.input, input, call.projected, rows);
    };
    if (one) projected_rows.share_out(layer.input.rows, thread, threads, project);
    else project(share(layer.input.rows, thread, threads));
    pool.barrier();
    call.convolve(share(width, thread, threads));
    pool.barrier();
    if (one) {
      middle.load(call.mixed, 1, width, width);
    } else {
      middle.quantize(thread, threads);
      pool.barrier();
    }
    const auto finish = [&](Range rows) {
      multiply_rows(layer.output, middle, normed, rows);
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t at = t * width + rows.begin;
        add_residual(x + at, layer.residual, normed + at, rows.end - rows.begin, y + at);
      }
    };
    if (one) output_rows.share_out(width, thread, threads, finish);
    else finish(share(width, thread, threads));
  });
}

}  // namespace conifer::blocks
