// The kernels for AVX2 with AVX-VNNI.
#if defined(__x86_64__)
#include "isa/table.h"

namespace conifer::isa {

// Constant-initialised: no code in this file may run before isa.cpp has checked the processor.
constinit const KernelTable KERNELS_avxvnni =
    kernel_table(gemm::quantize_avxvnni, gemm::multiply_avxvnni);

}  // namespace conifer::isa
#endif
