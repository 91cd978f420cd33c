// The extension's only MLX primitive. It keeps memory alive until its body has run.
#include "task.h"

#include <cstring>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"

namespace conifer {

namespace {

using SharedData = std::shared_ptr<mx::array::Data>;

// An input as passed to the body. Strided inputs are packed on the stream's thread.
class Source {
 public:
  explicit Source(const mx::array& input) : data_(input.data<char>()) {
    if (input.flags().row_contiguous) return;
    if (input.itemsize() != 4)
      throw std::invalid_argument("a strided input must have items of 4 bytes");
    shape_.assign(input.shape().begin(), input.shape().end());
    strides_.assign(input.strides().begin(), input.strides().end());
    items_ = input.size();
  }

  const void* read() {
    if (shape_.empty()) return data_;
    packed_.resize(items_);
    auto* from = static_cast<const uint32_t*>(data_);
    const int64_t run = strides_.back() == 1 ? shape_.back() : 1;  // contiguous items
    std::vector<int64_t> at(shape_.size(), 0);
    for (size_t i = 0; i < items_; i += run) {
      const int64_t start = std::inner_product(at.begin(), at.end(), strides_.begin(), int64_t{0});
      std::memcpy(packed_.data() + i, from + start, 4 * run);
      at.back() += run;
      for (size_t axis = at.size(); axis-- > 0 && at[axis] == shape_[axis];) {
        at[axis] = 0;
        if (axis > 0) ++at[axis - 1];
      }
    }
    return packed_.data();
  }

 private:
  const void* data_;
  std::vector<int64_t> shape_, strides_;
  std::vector<uint32_t> packed_;
  size_t items_ = 0;
};

class Task : public mx::Primitive {
 public:
  Task(mx::Stream stream, const char* name, Body body)
      : Primitive(stream), name_(name), body_(std::make_shared<const Body>(std::move(body))) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    std::vector<Source> sources;
    for (const mx::array& input : inputs) {
      encoder.set_input_array(input);
      sources.emplace_back(input);
    }
    // MLX keeps inputs alive until the task is done, but not outputs that nothing else references.
    std::vector<SharedData> kept;
    Targets targets;
    for (mx::array& output : outputs) {
      output.set_data(mx::allocator::malloc(output.nbytes()));
      encoder.set_output_array(output);
      kept.push_back(output.data_shared_ptr());
      targets.push_back(output.data<char>());
    }
    encoder.dispatch([body = body_, sources = std::move(sources), kept = std::move(kept),
                      targets = std::move(targets)]() mutable {
      Sources pointers;
      for (Source& source : sources) pointers.push_back(source.read());
      (*body)(pointers, targets);
    });
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("the native kernels run on a CPU stream only");
  }

  const char* name() const override { return name_; }

 private:
  const char* name_;
  std::shared_ptr<const Body> body_;
};

}  // namespace

std::vector<mx::array> launch(const char* name, std::vector<mx::array> inputs,
                              const std::vector<Output>& outputs, Body body) {
  const mx::Stream stream = mx::default_stream(mx::Device::cpu);
  auto task = std::make_shared<Task>(stream, name, std::move(body));
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  for (const Output& output : outputs) {
    shapes.push_back(output.shape);
    dtypes.push_back(output.dtype);
  }
  return mx::array::make_arrays(std::move(shapes), dtypes, task, inputs);
}

mx::array launch(const char* name, std::vector<mx::array> inputs, mx::Shape shape, Body body) {
  return launch(name, std::move(inputs), {{std::move(shape), mx::float32}}, std::move(body))[0];
}

Shared& shared() {
  // Never destroyed: a stream's thread may outlive this library's static objects.
  static Shared* all = new Shared;
  return *all;
}

bool& prompt_step() {
  static bool prompt = false;
  return prompt;
}

}  // namespace conifer
