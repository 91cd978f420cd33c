// y = x W^T for W in GGML blocks: one token or many, all of them or a gathered list.
//
// The serial functions are for use inside a parallel region, each thread with rows of its own.
// Few tokens stream the weights once, straight from their blocks; many tokens unpack panels of
// weights, to bytes for a blocked integer GEMM, or to bfloat16 where the processor has tiles.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "gemm/activations.h"
#include "quant/types.h"
#include "threads/pool.h"
#include "threads/share.h"

namespace conifer::gemm {

using quant::Matrix;
using threads::Pool;

// y[(t - token0) * y_stride + r] for t in [token0, token1), r in [row0, row1): r is not
// renumbered, so threads share one y. Other rows of y are left alone.
void matmul_rows(const Matrix& w, const Activations& x, int64_t token0, int64_t token1, float* y,
                 int64_t y_stride, int64_t row0, int64_t row1);

// The same for n tokens chosen by index: y[i * y_stride + r] is for token_ids[i].
void matmul_rows(const Matrix& w, const Activations& x, const int32_t* token_ids, int64_t n,
                 float* y, int64_t y_stride, int64_t row0, int64_t row1);

// out[i * cols + c]: rows of a matrix as floats, for embeddings.
void dequantize_rows(const Matrix& w, const int32_t* ids, int64_t n, float* out);

// True if products of so many tokens with all of these matrices can use AMX tiles.
bool tiles_serve(int64_t tokens, std::initializer_list<const Matrix*> matrices);

// True if AMX tiles serve products of many tokens on the instruction set in use.
bool tiles_in_use();

// Quantise and multiply on the pool: x (tokens, cols) and y (tokens, rows), both contiguous.
void matmul(const Matrix& w, const float* x, int64_t tokens, float* y, Pool& pool);
void matmul(const Matrix& w, const float* x, int64_t tokens, float* y, Pool& pool,
            Activations& scratch);

}  // namespace conifer::gemm
