// Products with many tokens in AMX tiles, for processors that have them.
#pragma once

#include "gemm/activations.h"
#include "gemm/dot.h"

namespace conifer::gemm {

// From this many tokens on, tiles are faster than bytes.
static constexpr int64_t AMX_TOKENS = 24;

// True if the processor can run the functions below.
bool amx_multiplies();

// Tokens come in pairs of tiles.
static constexpr int64_t whole_tiles(int64_t tokens) { return (tokens + 31) / 32 * 32; }

// One tile of up to 16 tokens, `stride` floats apart: bfloat16, laid out as in Activations::tile;
// missing tokens are zero.
void fill_tile(const float* x, int64_t stride, int64_t tokens, int64_t cols, uint16_t* tile);

// As KernelTable::multiply, for quantised weights.
void multiply_many_amx(const quant::Matrix& w, const quant::TokenView* x, int64_t tokens, float* y,
                       int64_t y_stride, int64_t row0, int64_t row1);

// The same for all tokens of x, which must be tiled.
void multiply_tiles(const quant::Matrix& w, const Activations& x, float* y, int64_t y_stride,
                    int64_t row0, int64_t row1);

// y = silu(gate x) * (up x): rows [row0, row1) of both become columns of y; x and y are tiled.
// row0 and the number of rows of the matrices are multiples of 32.
void gate_tiles(const quant::Matrix& gate, const quant::Matrix& up, const Activations& x,
                Activations& y, int64_t row0, int64_t row1);

}  // namespace conifer::gemm
