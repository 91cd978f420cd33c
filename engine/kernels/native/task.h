// Work on MLX's CPU stream. A task is a node of MLX's graph whose body runs on the stream's thread
// once its inputs are there; everything the body needs beyond them is captured by value.
#pragma once

#include <functional>
#include <mutex>
#include <vector>

#include "core/blocks/block.h"
#include "core/recurrent/recurrence.h"
#include "mlx/array.h"

namespace conifer {

namespace mx = mlx::core;

// The extension works with all rooms of the core.
using namespace attention;
using namespace blocks;
using namespace gemm;
using namespace quant;
using namespace recurrent;
using namespace threads;

using Sources = std::vector<const void*>;  // the inputs' data, rows packed
using Targets = std::vector<void*>;        // the outputs' memory
using Body = std::function<void(const Sources&, const Targets&)>;

struct Output {
  mx::Shape shape;
  mx::Dtype dtype;
};

// Put a task on the graph. Inputs have items of 4 bytes, or lie packed.
std::vector<mx::array> launch(const char* name, std::vector<mx::array> inputs,
                              const std::vector<Output>& outputs, Body body);

// The same with one output of float32.
mx::array launch(const char* name, std::vector<mx::array> inputs, mx::Shape shape, Body body);

// What tasks share. Streams of several threads may run tasks at once, so a body that touches this
// locks it first, for as long as it does.
struct Shared {
  std::mutex mutex;
  Activations activations;
  Workspace work;
};
Shared& shared();

}  // namespace conifer
