// AMX tiles: eight two-dimensional registers with up to 16 rows of 64 bytes.
#pragma once

#include <cstdint>

#include "isa/inline.h"

namespace conifer::isa {

#if defined(__AMX_INT8__)

namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t columns[16] = {};  // in bytes
  uint8_t rows[16] = {};

  void shape(int tile, int tile_rows, int tile_columns) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    columns[tile] = static_cast<uint16_t>(tile_columns);
  }
};

#if !defined(CONIFER_EMULATE_AMX)

// GCC 12.2 assumes that its own intrinsic reads only 8 of these 64 bytes.
CONIFER_INLINE void configure(const TileConfig& config) {
  asm volatile("ldtilecfg\t%0" : : "m"(config));
}

#endif

}  // namespace

#endif

}  // namespace conifer::isa

#if defined(__AMX_INT8__) && defined(CONIFER_EMULATE_AMX)
#include "isa/amx_emulated.h"
#endif
