// BF16: bfloat16, the upper half of a single-precision float.
#pragma once

#include "quant/format.h"

namespace conifer::quant {
namespace {

struct BF16 : Floating<2> {
  static constexpr int32_t ID = 30;

  static float read(const uint8_t* data) { return bf16_to_float(read_half(data)); }

  // Load a vector of weights as floats, with the instruction set's Ops (gemm/rowwise.h).
  template <class Ops>
  static auto load(const uint8_t* data) {
    return Ops::load_bf16(data);
  }
};

}  // namespace
}  // namespace conifer::quant
