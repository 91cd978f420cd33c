// Puts the table of float32 kernels together from this translation unit's own functions.
#pragma once

#include "attention/attention_impl.h"
#include "isa/float_kernels.h"
#include "recurrent/recurrence_impl.h"
#include "isa/rows_impl.h"

namespace conifer {
namespace {

constexpr FloatKernels float_table() {
  return {
      .rms_norm = rms_norm_row,
      .rotate = rotate_row,
      .silu_multiply = silu_multiply_row,
      .clamped_multiply = clamped_multiply_row,
      .sigmoid_multiply = sigmoid_multiply_row,
      .add = add_row,
      .add_scaled = add_scaled_row,
      .squares = squares_row,
      .scale = scale_row,
      .peak = peak_row,
      .weigh = weigh_row,
      .store_head = store_head_row,
      .attend_one = attend_one_isa,
      .attend_many = attend_many_isa,
      .convolve = convolve_columns,
      .scan = scan_columns,
  };
}

}  // namespace
}  // namespace conifer
