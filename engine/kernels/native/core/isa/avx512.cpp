// The kernels for AVX-512 (F, BW, DQ, VL, VNNI), without and with AMX tiles.
#if defined(__x86_64__)
#include "isa/table.h"

namespace conifer::isa {

// Constant-initialised: no code in this file may run before isa.cpp has checked the processor.
constinit const KernelTable KERNELS_avx512 =
    kernel_table(gemm::quantize_avx512, gemm::multiply_avx512);
constinit const KernelTable KERNELS_amx =
    kernel_table(gemm::quantize_avx512, gemm::multiply_amx, true);

}  // namespace conifer::isa
#endif
