// The store of experts, for Python.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <optional>
#include <vector>

#include "weight.h"

namespace conifer {

// A stack of matrices that is a part of a layer in the store.
Weight streamed_weight(const std::shared_ptr<ExpertStore>& store, int layer, int part, Type type,
                       int64_t experts, int64_t rows, int64_t cols,
                       const std::optional<std::vector<float>>& scales);

void bind_store(nanobind::module_& m);

}  // namespace conifer
