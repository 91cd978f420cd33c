// Products with many tokens in AMX tiles. Requires a processor with AMX.
#pragma once

#include "gemm/activations.h"
#include "gemm/dot.h"

namespace conifer::gemm {

// With at least this many tokens, bfloat16 tiles are faster than int8.
static constexpr int64_t TILE_TOKENS = 24;

// Tokens are processed in pairs of tiles.
static constexpr int64_t whole_tiles(int64_t tokens) { return (tokens + 31) / 32 * 32; }

// Store up to 16 tokens, `stride` floats apart, as one bfloat16 tile with the layout of
// Activations::tile. Missing tokens are zero.
void fill_tile(const float* x, int64_t stride, int64_t tokens, int64_t cols, uint16_t* tile);

// Same as KernelTable::multiply, for quantised weights. A token's result does not depend on the
// others.
void multiply_many_amx(const quant::Matrix& w, const quant::TokenView* x, int64_t tokens, float* y,
                       int64_t y_stride, int64_t row0, int64_t row1);

// The same for all tokens of x, which must be tiled.
void multiply_tiles(const quant::Matrix& w, const Activations& x, float* y, int64_t y_stride,
                    int64_t row0, int64_t row1);

// y = silu(gate x) * (up x). Rows [row0, row1) of both matrices become columns of y. x and y are
// tiled. row0 and the number of matrix rows are multiples of 32.
void gate_tiles(const quant::Matrix& gate, const quant::Matrix& up, const Activations& x,
                Activations& y, int64_t row0, int64_t row1);

}  // namespace conifer::gemm
