// The kernels for the target's baseline: SSE2, or NEON without the dot product extension.
#include "isa/table.h"

namespace conifer::isa {

// Constant-initialised: no code in this file may run before isa.cpp has checked the processor.
constinit const KernelTable KERNELS_portable =
    kernel_table(gemm::quantize_portable, gemm::multiply_portable);

}  // namespace conifer::isa
