// The instruction sets that this build has kernels for, and the choice among them.
//
// Each entry has files of its own: isa/<id>.cpp, which fills in its KernelTable, and
// gemm/dot_<id>.cpp. docs/adding-an-instruction-set.md has the steps.
#pragma once

#include <cstdint>

// X(name, id, text, supported): `id` names the files, `text` is for people, `supported` is the
// test of the processor in isa.cpp. Best last: the last one that the processor has is used.
#if defined(__x86_64__)
#define CONIFER_ISAS(X)                                                        \
  X(Portable, portable, "portable", true)                                      \
  X(Avx2, avx2, "AVX2", HAS("avx2") && HAS("fma") && HAS("f16c"))              \
  X(Avx512, avx512, "AVX-512 VNNI",                                            \
    HAS("avx512f") && HAS("avx512bw") && HAS("avx512dq") && HAS("avx512vl") && \
        HAS("avx512vnni") && HAS("avx2") && HAS("fma") && HAS("f16c"))
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

Isa current();          // the best supported one, unless force() changed it
bool supported(Isa);    // by this processor
void force(Isa);        // for tests and benchmarks; not while kernels run
const char* name(Isa);  // for people
const char* id(Isa);    // as in the names of its files

}  // namespace conifer::isa
