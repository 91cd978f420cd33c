// Shares the recurrent layers' loops among the threads of the pool.
#include "recurrence.h"

#include <cstring>
#include <vector>

#include "float_kernels.h"
#include "matmul.h"

namespace conifer {

namespace {

constexpr int64_t COLUMNS = 64;        // of a state, that one thread takes at a time
constexpr int64_t SERIAL = 1 << 15;    // multiply-adds below which a second thread costs more

template <class F>
void run(Pool& pool, int64_t work, F&& part) {
  if (work < SERIAL) part(0, 1);
  else pool.run(part);
}

}  // namespace

void convolve(const Convolution& call, float* y, float* tail, Pool& pool) {
  run(pool, call.tokens * call.channels * call.kernel, [&](int thread, int threads) {
    const Range mine = share(call.channels, thread, threads, COLUMNS);
    float_kernels().convolve(call, mine.begin, mine.end, y);
  });
  const int64_t before = call.kernel - 1, channels = call.channels;
  for (int64_t i = 0; i < before; ++i) {
    const int64_t token = call.tokens - before + i;  // negative: still one of the old tail
    const float* row = token < 0 ? call.tail + (before + token) * channels
                                 : call.x + token * channels;
    std::memcpy(tail + i * channels, row, size_t(channels) * sizeof(float));
  }
}

void scan(const Recurrence& call, float* y, float* state, Pool& pool) {
  const int64_t heads = call.a * call.b, matrix = call.width * call.values;
  const int64_t blocks = (call.values + COLUMNS - 1) / COLUMNS;
  run(pool, call.tokens * heads * matrix, [&](int thread, int threads) {
    const Range mine = share(heads * blocks, thread, threads, 1);
    std::vector<float> scratch(size_t(call.tokens > 1 ? call.width * COLUMNS : 0));
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      const int64_t head = item / blocks, begin = item % blocks * COLUMNS;
      const int64_t key = head / call.b * call.key_step_a + head % call.b * call.key_step_b;
      const int64_t end = begin + COLUMNS < call.values ? begin + COLUMNS : call.values;
      const HeadScan one{call.q + key * call.width,
                         call.k + key * call.width,
                         call.v + head * call.values,
                         call.log_decay + head,
                         call.beta ? call.beta + head : nullptr,
                         call.state + head * matrix,
                         y + head * call.values,
                         state + head * matrix,
                         call.tokens,
                         call.key_heads * call.width,
                         heads * call.values,
                         heads,
                         call.width,
                         call.values,
                         call.eps};
      float_kernels().scan(one, begin, end, scratch.data());
    }
  });
}

void gated_norm(const GatedNorm& call, float* out, Pool& pool) {
  const FloatKernels& kernels = float_kernels();
  const int64_t rows = call.tokens * call.rows, n = call.size;
  run(pool, rows * n, [&](int thread, int threads) {
    const Range mine = share(rows, thread, threads, 1);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      const float* weight = call.weight + row % call.rows % call.weights * n;
      const float* y = call.y + row * n;
      const float* gate = call.gate + row * n;
      float* to = out + row * n;
      if (call.gate_first) {
        kernels.silu_multiply(gate, y, n, to);
        kernels.rms_norm(to, weight, call.eps, n, to);
      } else {
        kernels.rms_norm(y, weight, call.eps, n, to);
        kernels.silu_multiply(gate, to, n, to);
      }
    }
  });
}

}  // namespace conifer
