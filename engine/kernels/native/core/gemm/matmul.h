// y = x W^T for W in GGML blocks: one token or many, all of them or a gathered list.
//
// The serial functions are for use inside a parallel region, each thread with rows of its own.
// Few tokens stream the weights once, straight from their blocks; many tokens unpack panels of
// weights, to bytes for a blocked integer GEMM, or to bfloat16 where the processor has tiles.
#pragma once

#include <cstdint>

#include "threads/pool.h"
#include "gemm/activations.h"
#include "quant/types.h"

namespace conifer {

// What the CPU can do, best last. Kernels for the best are chosen at first use.
enum class Isa : int32_t { Portable = 0, Avx2 = 1, Neon = 2, Avx512 = 3 };
Isa isa();                 // the one in use
bool isa_supported(Isa);   // by this CPU and this build
void force_isa(Isa);       // for tests and benchmarks; not while a product runs
const char* isa_name(Isa);

// y[(t - token0) * y_stride + r] for t in [token0, token1), r in [row0, row1): r is not
// renumbered, so threads share one y. Other rows of y are left alone.
void matmul_rows(const Matrix& w, const Activations& x, int64_t token0, int64_t token1, float* y,
                 int64_t y_stride, int64_t row0, int64_t row1);

// The same for n tokens chosen by index: y[i * y_stride + r] is for token_ids[i].
void matmul_rows(const Matrix& w, const Activations& x, const int32_t* token_ids, int64_t n,
                 float* y, int64_t y_stride, int64_t row0, int64_t row1);

// out[i * cols + c]: rows of a matrix as floats, for embeddings.
void dequantize_rows(const Matrix& w, const int32_t* ids, int64_t n, float* out);

// A thread's share [begin, end) of n rows, in whole panels of `grain` rows.
struct Range {
  int64_t begin, end;
};
constexpr int64_t ROW_GRAIN = 32;
constexpr Range share(int64_t n, int thread, int threads, int64_t grain = ROW_GRAIN) {
  const int64_t grains = (n + grain - 1) / grain;
  const int64_t begin = grains * thread / threads * grain;
  const int64_t end = grains * (thread + 1) / threads * grain;
  return {begin < n ? begin : n, end < n ? end : n};
}

// Quantise and multiply on the pool: x (tokens, cols) and y (tokens, rows), both contiguous.
void matmul(const Matrix& w, const float* x, int64_t tokens, float* y, Pool& pool);
void matmul(const Matrix& w, const float* x, int64_t tokens, float* y, Pool& pool,
            Activations& scratch);

}  // namespace conifer
