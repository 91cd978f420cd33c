// Chooses the instruction set on first use.
#include "isa/isa.h"

#include "isa/kernels.h"

#if defined(__linux__) && defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define HAS(feature) __builtin_cpu_supports(feature)
#define HAS_AVX2 (HAS("avx2") && HAS("fma") && HAS("f16c"))
#define HAS_AVX512                                                                                 \
  (HAS("avx512f") && HAS("avx512bw") && HAS("avx512dq") && HAS("avx512vl") && HAS("avx512vnni") && \
   HAS("avx2") && HAS("fma") && HAS("f16c"))
#if defined(__linux__) && defined(__aarch64__)
#define HAS_DOT_PRODUCT (getauxval(AT_HWCAP) & HWCAP_ASIMDDP)
#else
#define HAS_DOT_PRODUCT false
#endif

namespace conifer::isa {

namespace {

// True if the processor and the operating system support tiles. Checks once.
[[maybe_unused]] bool amx_granted() {
#if defined(CONIFER_EMULATE_AMX)
  return HAS("avx512bf16");
#elif defined(__linux__) && defined(__x86_64__)
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // arch_prctl: request a state component
  static const bool granted = HAS("amx-tile") && HAS("amx-int8") && HAS("amx-bf16") &&
                              HAS("avx512bf16") && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return granted;
#else
  return false;
#endif
}

struct Entry {
  Isa isa;
  const char* name;
  const char* id;
  const KernelTable* kernels;
  bool (*supported)();
};

constexpr Entry ENTRIES[] = {
#define X(Name, id, text, supported) \
  {Isa::Name, text, #id, &KERNELS_##id, [] { return bool(supported); }},
    CONIFER_ISAS(X)
#undef X
};

const Entry& entry(Isa isa) { return ENTRIES[static_cast<int32_t>(isa)]; }

const Entry*& chosen() {
  static const Entry* chosen = &entry(best());
  return chosen;
}

}  // namespace

const KernelTable& kernels() { return *chosen()->kernels; }

Isa best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  Isa best = Isa::Portable;
  for (const Entry& entry : ENTRIES)
    if (entry.supported()) best = entry.isa;
  return best;
}

Isa current() { return chosen()->isa; }

bool supported(Isa isa) { return entry(isa).supported(); }

void force(Isa isa) {
  if (supported(isa)) chosen() = &entry(isa);
}

const char* name(Isa isa) { return entry(isa).name; }

const char* id(Isa isa) { return entry(isa).id; }

}  // namespace conifer::isa
