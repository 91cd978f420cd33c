// The kernels for AVX-512 (F, BW, DQ, VL, VNNI), with AMX tiles if the processor supports them.
#if defined(__x86_64__)
#include "isa/table.h"

namespace conifer::isa {

// Constant-initialised: no code in this file may run before isa.cpp has checked the processor.
constinit const KernelTable KERNELS_avx512 =
    kernel_table(gemm::quantize_avx512, gemm::multiply_avx512, true);

}  // namespace conifer::isa
#endif
