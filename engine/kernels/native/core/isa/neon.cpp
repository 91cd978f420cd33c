// The kernels for NEON with the dot product extension.
#if defined(__aarch64__)
#include "isa/table.h"

namespace conifer::isa {

// Constant-initialised: no code in this file may run before isa.cpp has checked the processor.
constinit const KernelTable KERNELS_neon = kernel_table(gemm::quantize_neon, gemm::multiply_neon);

}  // namespace conifer::isa
#endif
