// y = x W^T, where W consists of GGML blocks: one token or many, all tokens or a gathered list.
//
// Use the serial functions inside a parallel region, where each thread has its own rows. For one
// token, weights are read once, directly from their blocks. For a prompt's tokens, panels of
// weights are unpacked to bytes for a blocked integer GEMM, or to bfloat16 if the processor
// supports AMX.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "gemm/activations.h"
#include "quant/types.h"
#include "threads/pool.h"
#include "threads/share.h"

namespace conifer::gemm {

using quant::Matrix;
using quant::Tokens;
using threads::Pool;

// Compute y[(t - token0) * y_stride + r] for t in [token0, token1) and r in [row0, row1). r is not
// renumbered, so threads can share one y. Other rows of y do not change.
void matmul_rows(const Matrix& w, const Activations& x, Tokens kind, int64_t token0, int64_t token1,
                 float* y, int64_t y_stride, int64_t row0, int64_t row1);

// The same for n tokens chosen by index: y[i * y_stride + r] is for token_ids[i].
void matmul_rows(const Matrix& w, const Activations& x, Tokens kind, const int32_t* token_ids,
                 int64_t n, float* y, int64_t y_stride, int64_t row0, int64_t row1);

// The kind of the tokens that chose an expert, out of `tokens` tokens of a prompt.
constexpr Tokens routed(int64_t tokens) {
  return tokens == quant::BLOCK_TOKENS ? Tokens::Block : Tokens::Routed;
}

// Read rows of a matrix as floats, for embeddings: out[i * cols + c].
void dequantize_rows(const Matrix& w, const int32_t* ids, int64_t n, float* out);

// True if a prompt's products with all of these matrices can use AMX tiles.
bool tiles_serve(std::initializer_list<const Matrix*> matrices);

// True if the current instruction set uses AMX tiles for products with many tokens.
bool tiles_in_use();

// Quantise and multiply on the thread pool. x (tokens, cols) and y (tokens, rows) are contiguous.
void matmul(const Matrix& w, const float* x, int64_t tokens, float* y, Pool& pool);
void matmul(const Matrix& w, const float* x, int64_t tokens, float* y, Pool& pool,
            Activations& scratch, Tokens kind = Tokens::Prompt);

}  // namespace conifer::gemm
