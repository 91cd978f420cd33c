// The float32 kernels for AVX-512 (F, BW, DQ, VL): the build gives this file the flags.
#if defined(__x86_64__)
#include "isa/kernels_impl.h"

namespace conifer {

// Constant-initialised: no code of this file may run before the processor was asked.
constinit const FloatKernels FLOAT_AVX512 = float_table();

}  // namespace conifer
#endif
