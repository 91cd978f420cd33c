// The kernels for every processor of the target: SSE2, or NEON without the dot product.
#include "isa/table.h"

namespace conifer::isa {

// Constant-initialised: no code of this file may run before isa.cpp has asked the processor.
constinit const KernelTable KERNELS_portable =
    kernel_table(gemm::quantize_portable, gemm::multiply_portable);

}  // namespace conifer::isa
