// F16: IEEE half-precision floats.
#pragma once

#include "quant/format.h"

namespace conifer::quant {
namespace {

struct F16 : Floating<2> {
  static constexpr int32_t ID = 1;

  static float read(const uint8_t* data) { return f16_to_float(read_half(data)); }

  // Load a vector of weights as floats, with the instruction set's Ops (gemm/rowwise.h).
  template <class Ops>
  static auto load(const uint8_t* data) {
    return Ops::load_f16(data);
  }
};

}  // namespace
}  // namespace conifer::quant
