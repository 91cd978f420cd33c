/* GCC 12.2, and others of its age, tell the optimiser that ldtilecfg reads 8 of the 64 bytes of its
   operand, and drop the stores to the rest. On such a compiler build llama.cpp with
   CXXFLAGS="-include .../tile_loadconfig.h". */
#if defined(__GNUC__) && !defined(__clang__) && defined(__AMX_TILE__)
#include <immintrin.h>
struct conifer_tile_config { unsigned char bytes[64]; };
static inline void conifer_tile_loadconfig(const void *config) {
    __asm__ volatile("ldtilecfg\t%0" : : "m"(*(const struct conifer_tile_config *)config));
}
#define _tile_loadconfig(config) conifer_tile_loadconfig(config)
#endif
