// Tasks on MLX's CPU stream. A task is a node in MLX's graph. Its body runs on the stream's thread
// once its inputs are ready, and captures everything else it needs by value.
#pragma once

#include <functional>
#include <mutex>
#include <vector>

#include "core/blocks/block.h"
#include "core/recurrent/recurrence.h"
#include "mlx/array.h"

namespace conifer {

namespace mx = mlx::core;

// The extension uses every namespace of the core.
using namespace attention;
using namespace blocks;
using namespace gemm;
using namespace quant;
using namespace recurrent;
using namespace threads;

using Sources = std::vector<const void*>;  // input data, rows packed
using Targets = std::vector<void*>;        // output memory
using Body = std::function<void(const Sources&, const Targets&)>;

struct Output {
  mx::Shape shape;
  mx::Dtype dtype;
};

// Add a task to the graph. Inputs must be contiguous or have 4-byte items.
std::vector<mx::array> launch(const char* name, std::vector<mx::array> inputs,
                              const std::vector<Output>& outputs, Body body);

// A task with a single float32 output.
mx::array launch(const char* name, std::vector<mx::array> inputs, mx::Shape shape, Body body);

// Scratch memory shared by all tasks. Streams on several threads may run tasks at the same time, so
// a body locks the mutex while it uses this memory.
struct Shared {
  std::mutex mutex;
  Activations activations;
  Workspace work;
};
Shared& shared();

// Set by Python before it builds a step: its tokens, even if it is one, are part of a prompt.
bool& prompt_step();

}  // namespace conifer
