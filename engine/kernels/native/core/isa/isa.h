// The instruction sets that this build supports, and how one is chosen.
//
// Each entry has two files: isa/<id>.cpp, which fills in its KernelTable, and gemm/dot_<id>.cpp.
// AMX shares those of AVX-512. docs/adding-an-instruction-set.md lists the steps for adding one.
#pragma once

#include <cstdint>

// X(name, id, text, supported): `id` appears in file names, `text` is the display name, and
// `supported` is the processor check in isa.cpp. The last supported entry is used, so best is last.
#if defined(__x86_64__)
#define CONIFER_ISAS(X)                                            \
  X(Portable, portable, "portable", true)                          \
  X(Avx2, avx2, "AVX2", HAS_AVX2)                                  \
  X(AvxVnni, avxvnni, "AVX2, AVX-VNNI", HAS_AVX2&& HAS("avxvnni")) \
  X(Avx512, avx512, "AVX-512 VNNI", HAS_AVX512)                    \
  X(Amx, amx, "AVX-512 VNNI, AMX", HAS_AVX512&& amx_granted())
#elif defined(__aarch64__)
#define CONIFER_ISAS(X)                   \
  X(Portable, portable, "portable", true) \
  X(Neon, neon, "NEON", HAS_DOT_PRODUCT)
#else
#define CONIFER_ISAS(X) X(Portable, portable, "portable", true)
#endif

namespace conifer::isa {

enum class Isa : int32_t {
#define X(Name, ...) Name,
  CONIFER_ISAS(X)
#undef X
};

inline constexpr Isa ALL[] = {
#define X(Name, ...) Isa::Name,
    CONIFER_ISAS(X)
#undef X
};

Isa best();             // of those that this processor supports
Isa current();          // the best, unless force() changed it
bool supported(Isa);    // by this processor
void force(Isa);        // not while kernels run
const char* name(Isa);  // display name
const char* id(Isa);    // as in file names

}  // namespace conifer::isa
