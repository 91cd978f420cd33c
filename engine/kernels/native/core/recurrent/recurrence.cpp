// Divides the recurrent layers' loops among the pool's threads.
#include "recurrent/recurrence.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "isa/kernels.h"
#include "threads/share.h"

namespace conifer::recurrent {

using threads::Range;
using threads::share;

namespace {

constexpr int64_t SERIAL = 1 << 15;  // multiply-adds below which a second thread costs more

template <class F>
void run(Pool& pool, int64_t work, F&& part) {
  if (work < SERIAL) part(0, 1);
  else pool.run(part);
}

}  // namespace

void convolve(const Convolution& call, float* y, float* tail, Pool& pool) {
  run(pool, call.tokens * call.channels * call.kernel, [&](int thread, int threads) {
    const Range mine = share(call.channels, thread, threads, SCAN_COLUMNS);
    isa::kernels().convolve(call, mine.begin, mine.end, y);
  });
  copy_tail(call, call.tokens, 0, call.channels, tail);
}

void copy_tail(const Convolution& call, int64_t tokens, int64_t begin, int64_t end, float* tail) {
  const int64_t before = call.kernel - 1, channels = call.channels;
  for (int64_t i = 0; i < before; ++i) {
    const int64_t token = tokens - before + i;  // negative: still in the old tail
    const float* row =
        token < 0 ? call.tail + (before + token) * channels : call.x + token * call.stride;
    std::copy(row + begin, row + end, tail + i * channels + begin);
  }
}

void to_length(float* x, int64_t heads, int64_t n, float eps, float factor) {
  const isa::KernelTable& kernels = isa::kernels();
  for (int64_t h = 0; h < heads; ++h, x += n)
    kernels.scale(x, factor / std::sqrt(kernels.squares(x, n) + eps), n, x);
}

void scan(const Recurrence& call, float* y, float* state, Pool& pool) {
  const int64_t heads = call.a * call.b, matrix = call.width * call.values;
  const int64_t blocks = (call.values + SCAN_COLUMNS - 1) / SCAN_COLUMNS;
  const int64_t keys = call.tokens * call.key_heads;
  const int64_t decays = call.channels ? call.width : 1;  // for each head
  std::vector<float> decay(call.log_decay, call.log_decay + call.tokens * heads * decays);
  for (float& x : decay) x = std::exp(x);
  const float *q = call.q, *k = call.k;
  std::vector<float> scaled[2];
  if (call.beta) {
    scaled[0].assign(q, q + keys * call.width);
    scaled[1].assign(k, k + keys * call.width);
    to_length(scaled[0].data(), keys, call.width, call.eps, 1 / std::sqrt(float(call.width)));
    to_length(scaled[1].data(), keys, call.width, call.eps, 1.0f);
    q = scaled[0].data();
    k = scaled[1].data();
  }
  run(pool, call.tokens * heads * matrix, [&](int thread, int threads) {
    const Range mine = share(heads * blocks, thread, threads, 1);
    std::vector<float> scratch(size_t(call.tokens > 1 ? call.width * SCAN_COLUMNS : 0));
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      const int64_t head = item / blocks, begin = item % blocks * SCAN_COLUMNS;
      const int64_t key = head / call.b * call.key_step_a + head % call.b * call.key_step_b;
      const HeadScan one{.q = q + key * call.width,
                         .k = k + key * call.width,
                         .v = call.v + head * call.values,
                         .decay = decay.data() + head * decays,
                         .factor = call.beta ? call.beta + head : nullptr,
                         .state = call.state + head * matrix,
                         .y = y + head * call.values,
                         .end = state + head * matrix,
                         .tokens = call.tokens,
                         .key_stride = call.key_heads * call.width,
                         .value_stride = heads * call.values,
                         .y_stride = heads * call.values,
                         .scalar_stride = heads,
                         .decay_stride = heads * decays,
                         .width = call.width,
                         .values = call.values,
                         .skip = 0.0f,
                         .delta = call.beta != nullptr,
                         .channels = call.channels};
      isa::kernels().scan(one, begin, std::min(begin + SCAN_COLUMNS, call.values), scratch.data());
    }
  });
}

void gated_norm_row(const float* y, const float* gate, const float* weight, int64_t n, float eps,
                    bool gate_first, float* out) {
  const isa::KernelTable& kernels = isa::kernels();
  if (gate_first) {
    kernels.silu_multiply(gate, y, n, out);
    kernels.rms_norm(out, weight, eps, n, out);
  } else {
    kernels.rms_norm(y, weight, eps, n, out);
    kernels.silu_multiply(gate, out, n, out);
  }
}

void gated_norm(const GatedNorm& call, float* out, Pool& pool) {
  const int64_t rows = call.tokens * call.rows, n = call.size;
  run(pool, rows * n, [&](int thread, int threads) {
    const Range mine = share(rows, thread, threads, 1);
    for (int64_t row = mine.begin; row < mine.end; ++row)
      gated_norm_row(call.y + row * n, call.gate + row * n,
                     call.weight + row % call.rows % call.weights * n, n, call.eps, call.gate_first,
                     out + row * n);
  });
}

}  // namespace conifer::recurrent
