// The float32 kernels with what every processor of the target has: SSE2, or NEON.
#include "isa/kernels_impl.h"

namespace conifer {

constinit const FloatKernels FLOAT_PORTABLE = float_table();

}  // namespace conifer
