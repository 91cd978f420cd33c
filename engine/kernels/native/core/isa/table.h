// Assembles a KernelTable from this translation unit's float32 loops.
#pragma once

#include "attention/attention_impl.h"
#include "gemm/dot.h"
#include "isa/kernels.h"
#include "isa/rows_impl.h"
#include "recurrent/recurrence_impl.h"

namespace conifer::isa {
namespace {

constexpr KernelTable kernel_table(decltype(KernelTable::quantize) quantize,
                                   decltype(KernelTable::multiply) multiply, bool tiles = false) {
  return {
      .tiles = tiles,
      .quantize = quantize,
      .multiply = multiply,
      .rms_norm = rms_norm_row,
      .layer_norm = layer_norm_row,
      .rotate = rotate_row,
      .silu_multiply = silu_multiply_row,
      .clamped_multiply = clamped_multiply_row,
      .capped_multiply = capped_multiply_row,
      .gelu_multiply = gelu_multiply_row,
      .sigmoid_multiply = sigmoid_multiply_row,
      .add = add_row,
      .add_scaled = add_scaled_row,
      .squares = squares_row,
      .scale = scale_row,
      .all_finite = all_finite_row,
      .peak = peak_row,
      .weigh = weigh_row,
      .store_head = attention::store_head_row,
      .attend_one = attention::attend_one_isa,
      .attend_many = attention::attend_many_isa,
      .score_rows = attention::score_rows_isa,
      .convolve = recurrent::convolve_columns,
      .scan = recurrent::scan_columns,
  };
}

}  // namespace
}  // namespace conifer::isa
