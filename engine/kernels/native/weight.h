// A weight: GGML blocks, read in place from a mapped file or another Python buffer.
//
// Axes: T tokens, E experts, k chosen experts.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/quant/types.h"
#include "core/store/store.h"
#include "task.h"

namespace conifer {

using store::ExpertStore;

// A matrix (rows, cols), or a contiguous stack of matrices (experts, rows, cols). `owner` keeps the
// blocks alive. Tasks that read the blocks hold a copy of `owner`.
struct Weight {
  std::shared_ptr<const void> owner;
  const uint8_t* data;
  Type type;
  int64_t experts, rows, cols;
  std::shared_ptr<const std::vector<float>> scales;  // a factor for each expert; may be null
  // If not null, the experts are this part of a layer in the store, and `data` means nothing.
  std::shared_ptr<ExpertStore> store = nullptr;
  int layer = 0, part = 0;

  Matrix matrix(int64_t expert = 0) const {
    const uint8_t* blocks = data + expert * rows * row_bytes(type, cols);
    return {blocks, type, rows, cols, scales ? scales->data() + expert : nullptr};
  }
};

// Callers check shapes. x is float32, and ids are int32.
mx::array matmul(const mx::array& x, const Weight& w);  // (T, in) -> (T, out)
// (T, 1 or k, in), (T, k) -> (T, k, out)
mx::array gather_matmul(const mx::array& x, const mx::array& ids, const Weight& w);
mx::array rows(const mx::array& ids, const Weight& w);  // (T,) -> (T, in); -1 is the last row

}  // namespace conifer
