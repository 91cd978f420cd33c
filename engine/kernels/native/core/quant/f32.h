// F32: IEEE single-precision floats.
#pragma once

#include "quant/format.h"

namespace conifer::quant {
namespace {

struct F32 : Floating<4> {
  static constexpr int32_t ID = 0;

  static float read(const uint8_t* data) {
    float x;
    std::memcpy(&x, data, 4);
    return x;
  }

  // Load a vector of weights as floats, with the instruction set's Ops (gemm/rowwise.h).
  template <class Ops>
  static auto load(const uint8_t* data) {
    return Ops::load_f32(data);
  }
};

}  // namespace
}  // namespace conifer::quant
