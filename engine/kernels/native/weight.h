// A weight: GGML blocks read where they lie, in a mapped file or any other Python buffer.
//
// Axes: T tokens, E experts, k chosen experts.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "task.h"
#include "core/quant/types.h"

namespace conifer {

// A matrix (rows, cols), or a stack (experts, rows, cols) of them without gaps. `owner` keeps the
// blocks alive, and is captured by whatever still has to read them.
struct Weight {
  std::shared_ptr<const void> owner;
  const uint8_t* data;
  Type type;
  int64_t experts, rows, cols;

  Matrix matrix(int64_t expert = 0) const {
    return {data + expert * rows * row_bytes(type, cols), type, rows, cols};
  }
};

// The callers have checked shapes; x is float32 and ids int32.
mx::array matmul(const mx::array& x, const Weight& w);  // (T, in) -> (T, out)
// (T, 1 or k, in), (T, k) -> (T, k, out)
mx::array gather_matmul(const mx::array& x, const mx::array& ids, const Weight& w);
mx::array rows(const mx::array& ids, const Weight& w);  // (T,) -> (T, in); -1 is the last row

}  // namespace conifer
