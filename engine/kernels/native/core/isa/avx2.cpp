// The float32 kernels for AVX2, FMA and F16C: the build gives this file the flags.
#if defined(__x86_64__)
#include "isa/kernels_impl.h"

namespace conifer {

// Constant-initialised: no code of this file may run before the processor was asked.
constinit const FloatKernels FLOAT_AVX2 = float_table();

}  // namespace conifer
#endif
