// The tile instructions used by the kernels, in plain C++, so that tests run on any processor with
// AVX-512 and bfloat16. Slow; only built with -DCONIFER_EMULATE_AMX=ON. Included by amx.h.
//
// Semantics: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2. Unlike the
// processor, TDPBF16PS here keeps denormals, which only makes sums more accurate.
#pragma once

#include "isa/avx512.h"

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace conifer::isa {
namespace {

struct EmulatedTiles {
  TileConfig config;
  bool configured = false;
  alignas(64) uint8_t data[8][16][64];

  int rows(int tile) const { return config.rows[tile]; }
  int columns(int tile) const { return config.columns[tile]; }

  void need(int tile) const {
    if (!configured || rows(tile) == 0) std::abort();  // the processor raises #UD
  }

  void zero(int tile) {
    need(tile);
    std::memset(data[tile], 0, sizeof data[tile]);
  }

  void load(int tile, const void* from, int64_t stride) {
    zero(tile);
    for (int r = 0; r < rows(tile); ++r)
      std::memcpy(data[tile][r], static_cast<const uint8_t*>(from) + r * stride, columns(tile));
  }

  void store(int tile, void* to, int64_t stride) const {
    need(tile);
    for (int r = 0; r < rows(tile); ++r)
      std::memcpy(static_cast<uint8_t*>(to) + r * stride, data[tile][r], columns(tile));
  }

  // sums (M, N) += a (M, K groups of 4 bytes) x b (K, N groups of 4 bytes)
  template <class Sum, class Dot>
  void multiply(int sums, int a, int b, Dot dot) {
    need(sums), need(a), need(b);
    const int depth = columns(a) / 4;
    if (rows(a) != rows(sums) || columns(b) != columns(sums) || rows(b) != depth) std::abort();
    for (int m = 0; m < rows(sums); ++m)
      for (int n = 0; n < columns(sums) / 4; ++n) {
        Sum sum;
        std::memcpy(&sum, data[sums][m] + 4 * n, 4);
        for (int k = 0; k < depth; ++k) sum = dot(sum, data[a][m] + 4 * k, data[b][k] + 4 * n);
        std::memcpy(data[sums][m] + 4 * n, &sum, 4);
      }
  }

  void dot_int8(int sums, int a, int b) {
    multiply<int32_t>(sums, a, b, [](int32_t sum, const uint8_t* x, const uint8_t* y) {
      for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(x[i]) * static_cast<int8_t>(y[i]);
      return sum;
    });
  }

  void dot_bf16(int sums, int a, int b) {
    multiply<float>(sums, a, b, [](float sum, const uint8_t* x, const uint8_t* y) {
      for (int i = 0; i < 4; i += 2) sum += widen(x + i) * widen(y + i);
      return sum;
    });
  }

  static float widen(const uint8_t* half) {
    return std::bit_cast<float>(static_cast<uint32_t>(half[1] << 8 | half[0]) << 16);
  }
};

thread_local EmulatedTiles tiles;

void configure(const TileConfig& config) {
  tiles.config = config;
  tiles.configured = true;
}

}  // namespace
}  // namespace conifer::isa

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbf16ps
#undef _tile_release
#define _tile_zero(tile) ::conifer::isa::tiles.zero(tile)
#define _tile_loadd(tile, from, stride) ::conifer::isa::tiles.load(tile, from, stride)
#define _tile_stored(tile, to, stride) ::conifer::isa::tiles.store(tile, to, stride)
#define _tile_dpbssd(sums, a, b) ::conifer::isa::tiles.dot_int8(sums, a, b)
#define _tile_dpbf16ps(sums, a, b) ::conifer::isa::tiles.dot_bf16(sums, a, b)
#define _tile_release() (::conifer::isa::tiles.configured = false)
