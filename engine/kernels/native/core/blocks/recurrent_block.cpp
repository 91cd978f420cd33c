// The recurrent block: a complete Mamba-2 or delta-net layer in one parallel region. See block.h.
//
// Threads divide the projections by rows, the convolution by channels, and the recurrence by heads.
#include <algorithm>
#include <cmath>

#include "blocks/steps.h"
#include "isa/kernels.h"
#include "recurrent/recurrence.h"

namespace conifer::blocks {

using namespace recurrent;

namespace {

using Parts = Workspace::Parts;
using Thread = Parts::Thread;

struct RecurrentCall {
  const RecurrentLayer& layer;
  const RecurrentStates& states;
  const float* x;
  int64_t tokens;
  float* y;
  Parts& parts;
  Pool& pool;
  std::vector<Projection> projections;
  int64_t width;       // total of all projections
  float* projected;    // (T, width)
  float* convolved;    // (T, C)
  float* decays;       // (T, A, B), or (T, A, B, N) for channels
  float* factors;      // (T, A, B)
  const float* steps;  // (T, step_stride): the steps of channels
  const float* gates;  // (T, gate_stride): the gates of the gated norm
  int64_t step_stride, gate_stride;
  float* lifted[2];            // what the second projections of steps and gates output
  float* mixed;                // (T, A B P)
  const float* nothing;        // zeros, enough for a tail or a head's memory
  RowSharing* projected_rows;  // for a single token
  RowSharing* output_rows;
};

float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

void project(const RecurrentCall& call, const Activations& input, Range rows) {
  multiply_range(call.projections.data(), int64_t(call.projections.size()), input, call.tokens,
                 call.projected, call.width, rows);
}

// Convolve some channels and update their tails. If lengths matter, these are whole key heads.
void convolve_range(const RecurrentCall& call, Range channels) {
  const RecurrentLayer& layer = call.layer;
  const RecurrentStates& states = call.states;
  const float* tail = states.from ? states.from->tail : call.nothing;
  const Convolution convolution{call.projected + layer.mixed_at,
                                tail,
                                layer.taps,
                                layer.bias,
                                call.tokens,
                                layer.channels,
                                layer.kernel,
                                call.width,
                                true};
  isa::kernels().convolve(convolution, channels.begin, channels.end, call.convolved);
  if (states.mark)
    copy_tail(convolution, states.mark_tokens, channels.begin, channels.end, states.mark->tail);
  if (states.end)
    copy_tail(convolution, call.tokens, channels.begin, channels.end, states.end->tail);
  if (!layer.delta) return;
  const int64_t keys = layer.key_heads * layer.width;
  const auto shorten = [&](int64_t at, float factor) {
    const int64_t begin = std::max(channels.begin, at), end = std::min(channels.end, at + keys);
    for (int64_t t = 0; t < call.tokens && begin < end; ++t)
      to_length(call.convolved + t * layer.channels + begin, (end - begin) / layer.width,
                layer.width, layer.length_eps, factor);
  };
  shorten(layer.q_at, 1.0f / std::sqrt(float(layer.width)));
  shorten(layer.k_at, 1.0f);
}

// Compute some rows of the second projections, numbered as those of the steps, then of the gates.
void lift(const RecurrentCall& call, const Activations& steps, const Activations& gates,
          Range rows) {
  const Matrix &first = call.layer.step_b, &second = call.layer.gate_b;
  multiply_products({{first, call.lifted[0]}}, steps, rows);
  multiply_products({{second, call.lifted[1]}}, gates,
                    {rows.begin - first.rows, rows.end - first.rows});
}

// Compute the decays of a head's channels, and its factors, for all tokens.
void weigh_channels(const RecurrentCall& call, int64_t head, Thread& own) {
  const RecurrentLayer& layer = call.layer;
  const isa::KernelTable& kernels = isa::kernels();
  const int64_t n = layer.width;
  const float rate = layer.rate[head], *bias = layer.step_bias + head * n;
  float* ones = own.weights.need(2 * n);
  float* steps = ones + n;
  std::fill(ones, ones + n, 1.0f);
  for (int64_t t = 0; t < call.tokens; ++t) {
    float* decays = call.decays + (t * layer.heads() + head) * n;
    kernels.add(call.steps + t * call.step_stride + head * n, bias, n, steps);
    if (layer.bound != 0.0f) {
      kernels.scale(steps, rate, n, steps);
      kernels.sigmoid_multiply(steps, ones, n, steps);
      kernels.weigh(steps, 0.0f, layer.bound, n, decays);
    } else {
      for (int64_t i = 0; i < n; ++i) steps[i] = softplus(steps[i]);
      kernels.weigh(steps, 0.0f, rate, n, decays);
    }
    const float beta = call.projected[t * call.width + layer.beta.of(head)];
    call.factors[t * layer.heads() + head] = 1.0f / (1.0f + std::exp(-beta));
  }
}

// Compute every head's decay and factor for some tokens.
void weigh_heads(const RecurrentCall& call, Range tokens) {
  const RecurrentLayer& layer = call.layer;
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    const float* row = call.projected + t * call.width;
    float* decays = call.decays + t * layer.heads();
    float* factors = call.factors + t * layer.heads();
    for (int64_t h = 0; h < layer.heads(); ++h) {
      const float x = row[layer.step.of(h)] + layer.step_bias[h];
      const float step = softplus(x);
      decays[h] = std::exp(layer.rate[h] * step);
      factors[h] = layer.delta ? 1.0f / (1.0f + std::exp(-row[layer.beta.of(h)])) : step;
    }
  }
}

// Compute the recurrence for some heads, first up to the mark and then from the mark on.
void scan_heads(const RecurrentCall& call, Range heads, Thread& own) {
  const RecurrentLayer& layer = call.layer;
  const RecurrentStates& states = call.states;
  const int64_t matrix = layer.width * layer.values;
  float* scratch = own.scratch.need(layer.width * SCAN_COLUMNS);
  float* unkept = states.end ? nullptr : own.queries.need(matrix);
  for (int64_t head = heads.begin; head < heads.end; ++head) {
    if (layer.by_channel) weigh_channels(call, head, own);
    const int64_t key = head / layer.b * layer.key_step_a + head % layer.b * layer.key_step_b;
    const auto memory = [&](const RecurrentState* state) { return state->memory + head * matrix; };
    const float* from = states.from ? memory(states.from) : call.nothing;
    int64_t begin = 0;
    const auto run = [&](int64_t end, float* behind) {
      const float* row = call.convolved + begin * layer.channels;
      const HeadScan scan{.q = row + layer.q_at + key * layer.width,
                          .k = row + layer.k_at + key * layer.width,
                          .v = row + layer.v_at + head * layer.values,
                          .decay = call.decays + (begin * layer.heads() + head) * layer.decays(),
                          .factor = call.factors + begin * layer.heads() + head,
                          .state = from,
                          .y = call.mixed + begin * layer.inner() + head * layer.values,
                          .end = behind,
                          .tokens = end - begin,
                          .key_stride = layer.channels,
                          .value_stride = layer.channels,
                          .y_stride = layer.inner(),
                          .scalar_stride = layer.heads(),
                          .decay_stride = layer.heads() * layer.decays(),
                          .width = layer.width,
                          .values = layer.values,
                          .skip = layer.skip ? layer.skip[head] : 0.0f,
                          .delta = layer.delta,
                          .channels = layer.by_channel};
      for (int64_t column = 0; column < layer.values; column += SCAN_COLUMNS)
        isa::kernels().scan(scan, column, std::min(column + SCAN_COLUMNS, layer.values), scratch);
      from = behind;
      begin = end;
    };
    if (states.mark) run(states.mark_tokens, memory(states.mark));
    run(call.tokens, states.end ? memory(states.end) : unkept);
  }
}

// Gate and normalise one token's result. out may be its part of `mixed`.
void norm_token(const RecurrentCall& call, int64_t token, float* out) {
  const RecurrentLayer& layer = call.layer;
  const int64_t n = layer.inner() / layer.norm_rows;
  const float* mixed = call.mixed + token * layer.inner();
  const float* gate = call.gates + token * call.gate_stride;
  if (layer.sigmoid_gate) {
    for (int64_t row = 0; row < layer.norm_rows; ++row)
      normalize(mixed + row * n,
                {layer.gated_norm.weight + row % layer.norm_weights * n, layer.gated_norm.eps}, n,
                out + row * n);
    return isa::kernels().sigmoid_multiply(gate, out, layer.inner(), out);
  }
  for (int64_t row = 0; row < layer.norm_rows; ++row)
    gated_norm_row(mixed + row * n, gate + row * n,
                   layer.gated_norm.weight + row % layer.norm_weights * n, n, layer.gated_norm.eps,
                   layer.gate_first, out + row * n);
}

// Compute some rows of the output projection and add the residual.
void finish(const RecurrentCall& call, const Activations& mixed, Range rows) {
  const int64_t width = call.layer.output.rows;
  float* sums = call.parts.normed.need(0);
  multiply_rows(call.layer.output, mixed, sums, rows);
  for (int64_t t = 0; t < call.tokens; ++t) {
    const int64_t at = t * width + rows.begin;
    add_residual(call.x + at, call.layer.residual, sums + at, rows.end - rows.begin, call.y + at);
  }
}

void one_token(const RecurrentCall& call, int thread, int threads) {
  const RecurrentLayer& layer = call.layer;
  Thread& own = *call.parts.threads[size_t(thread)];
  const int64_t width = layer.output.rows, inner = layer.inner();
  float* normed = own.normed.need(width);
  normalize(call.x, layer.norm, width, normed);
  own.input.load(normed, 1, width, width);
  call.projected_rows->share_out(call.width, thread, threads,
                                 [&](Range rows) { project(call, own.input, rows); });
  call.pool.barrier();
  convolve_range(call, share(layer.channels, thread, threads, layer.width));
  if (layer.lifted()) {
    own.hidden.load(call.projected + layer.step.at, 1, layer.step_b.cols, layer.step_b.cols);
    own.shared.load(call.projected + layer.gate_at, 1, layer.gate_b.cols, layer.gate_b.cols);
    lift(call, own.hidden, own.shared, share(layer.lifted(), thread, threads));
  }
  if (thread == threads - 1 && !layer.by_channel) weigh_heads(call, {0, 1});
  call.pool.barrier();
  scan_heads(call, share(layer.heads(), thread, threads, 1), own);
  call.pool.barrier();
  float* mixed = own.mixed.need(inner);
  norm_token(call, 0, mixed);
  own.hidden.load(mixed, 1, inner, inner);
  call.output_rows->share_out(width, thread, threads,
                              [&](Range rows) { finish(call, own.hidden, rows); });
}

void many_tokens(const RecurrentCall& call, int thread, int threads) {
  const RecurrentLayer& layer = call.layer;
  Parts& parts = call.parts;
  const int64_t width = layer.output.rows;
  const Range tokens = share(call.tokens, thread, threads, 1);
  for (int64_t t = tokens.begin; t < tokens.end; ++t)
    normalize(call.x + t * width, layer.norm, width, parts.normed.need(0) + t * width);
  call.pool.barrier();
  parts.input.quantize(thread, threads);
  call.pool.barrier();
  project(call, parts.input, share(call.width, thread, threads));
  call.pool.barrier();
  if (layer.lifted()) {
    parts.queries.quantize(thread, threads);
    parts.latents.quantize(thread, threads);
    call.pool.barrier();
    lift(call, parts.queries, parts.latents, share(layer.lifted(), thread, threads));
  }
  convolve_range(call, share(layer.channels, thread, threads, layer.width));
  if (!layer.by_channel) weigh_heads(call, tokens);
  call.pool.barrier();
  scan_heads(call, share(layer.heads(), thread, threads, 1), *parts.threads[size_t(thread)]);
  call.pool.barrier();
  for (int64_t t = tokens.begin; t < tokens.end; ++t)
    norm_token(call, t, call.mixed + t * layer.inner());
  call.pool.barrier();
  parts.hidden.quantize(thread, threads);
  call.pool.barrier();
  finish(call, parts.hidden, share(width, thread, threads));
}

}  // namespace

void recurrent_block(const RecurrentLayer& layer, const RecurrentStates& states, const float* x,
                     int64_t tokens, float* y, Workspace& work, Pool& pool) {
  Parts& parts = *work.parts;
  const int64_t width = layer.output.rows, inner = layer.inner();
  const int64_t zeros = std::max(layer.tail_values(), layer.width * layer.values);
  parts.need_threads(pool.threads());
  RowSharing projected_rows, output_rows;
  RecurrentCall call{.layer = layer,
                     .states = states,
                     .x = x,
                     .tokens = tokens,
                     .y = y,
                     .parts = parts,
                     .pool = pool,
                     .projections = {},
                     .width = 0,
                     .projected = nullptr,
                     .convolved = parts.convolved.need(tokens * layer.channels),
                     .decays = parts.decays.need(tokens * layer.heads() * layer.decays()),
                     .factors = parts.factors.need(tokens * layer.heads()),
                     .steps = nullptr,
                     .gates = nullptr,
                     .step_stride = 0,
                     .gate_stride = 0,
                     .lifted = {parts.gate.need(tokens * layer.step_b.rows),
                                parts.up.need(tokens * layer.gate_b.rows)},
                     .mixed = parts.mixed.need(tokens * inner),
                     .nothing = nullptr,
                     .projected_rows = &projected_rows,
                     .output_rows = &output_rows};
  bool tiled = true;
  for (const Matrix& input : layer.inputs) {
    call.projections.push_back({&input, nullptr});
    call.width += input.rows;
    tiled = tiled && gemm::tiles_serve({&input});
  }
  call.projected = parts.projected.need(tokens * call.width);
  const bool step_b = layer.step_b.data, gate_b = layer.gate_b.data;
  call.steps = step_b ? call.lifted[0] : call.projected + layer.step.at;
  call.step_stride = step_b ? layer.step_b.rows : call.width;
  call.gates = gate_b ? call.lifted[1] : call.projected + layer.gate_at;
  call.gate_stride = gate_b ? layer.gate_b.rows : call.width;
  if (!states.from) {
    float* nothing = parts.nothing.need(zeros);
    std::fill(nothing, nothing + zeros, 0.0f);
    call.nothing = nothing;
  }
  float* normed = parts.normed.need(tokens * width);
  const bool decodes = work.decodes(tokens);
  if (!decodes) {
    parts.input.prepare(normed, tokens, width, width, tiled);
    parts.hidden.prepare(call.mixed, tokens, inner, inner, gemm::tiles_serve({&layer.output}));
    if (layer.lifted()) {
      parts.queries.prepare(call.projected + layer.step.at, tokens, layer.step_b.cols, call.width);
      parts.latents.prepare(call.projected + layer.gate_at, tokens, layer.gate_b.cols, call.width);
    }
  }
  pool.run([&](int thread, int threads) {
    if (decodes) one_token(call, thread, threads);
    else many_tokens(call, thread, threads);
  });
}

}  // namespace conifer::blocks
