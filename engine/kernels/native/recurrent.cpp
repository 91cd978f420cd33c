// A recurrent layer's steps, as tasks.
#include "recurrent.h"

#include <utility>
#include <vector>

namespace conifer {

namespace {

const float* floats(const Sources& in, size_t i) {
  return i < in.size() ? static_cast<const float*>(in[i]) : nullptr;
}

}  // namespace

std::pair<mx::array, mx::array> convolve_task(const mx::array& x, const mx::array& tail,
                                              const mx::array& taps,
                                              const std::optional<mx::array>& bias, bool activate) {
  std::vector<mx::array> inputs{x, tail, taps};
  if (bias) inputs.push_back(*bias);
  const int64_t tokens = x.shape(0), channels = x.shape(1), kernel = taps.shape(0);
  const auto made = launch(
      "Convolve", std::move(inputs), {{x.shape(), mx::float32}, {tail.shape(), mx::float32}},
      [=](const Sources& in, const Targets& out) {
        const Convolution call{floats(in, 0), floats(in, 1), floats(in, 2), floats(in, 3), tokens,
                               channels,      kernel,        channels,      activate};
        convolve(call, static_cast<float*>(out[0]), static_cast<float*>(out[1]), Pool::shared());
      });
  return {made[0], made[1]};
}

std::pair<mx::array, mx::array> scan_task(const mx::array& q, const mx::array& k,
                                          const mx::array& v, const mx::array& log_decay,
                                          const mx::array& state,
                                          const std::optional<mx::array>& beta, float eps) {
  std::vector<mx::array> inputs{q, k, v, log_decay, state};
  if (beta) inputs.push_back(*beta);
  Recurrence shape{};
  shape.tokens = v.shape(0);
  shape.a = v.shape(1);
  shape.b = v.shape(2);
  shape.values = v.shape(3);
  shape.width = q.shape(3);
  shape.key_heads = int64_t{q.shape(1)} * q.shape(2);
  shape.key_step_a = q.shape(1) > 1 ? q.shape(2) : 0;
  shape.key_step_b = q.shape(2) > 1 ? 1 : 0;
  shape.eps = eps;
  shape.channels = log_decay.ndim() == 4;
  const auto made =
      launch("Scan", std::move(inputs), {{v.shape(), mx::float32}, {state.shape(), mx::float32}},
             [shape](const Sources& in, const Targets& out) {
               Recurrence call = shape;
               call.q = floats(in, 0);
               call.k = floats(in, 1);
               call.v = floats(in, 2);
               call.log_decay = floats(in, 3);
               call.state = floats(in, 4);
               call.beta = floats(in, 5);
               scan(call, static_cast<float*>(out[0]), static_cast<float*>(out[1]), Pool::shared());
             });
  return {made[0], made[1]};
}

mx::array gated_norm_task(const mx::array& y, const mx::array& gate, const mx::array& weight,
                          float eps, bool gate_first) {
  const int64_t tokens = y.shape(0), rows = y.shape(1), size = y.shape(2);
  const int64_t weights = weight.shape(0);
  return launch("GatedNorm", {y, gate, weight}, y.shape(),
                [=](const Sources& in, const Targets& out) {
                  const GatedNorm call{floats(in, 0), floats(in, 1), floats(in, 2), tokens,    rows,
                                       weights,       size,          eps,           gate_first};
                  gated_norm(call, static_cast<float*>(out[0]), Pool::shared());
                });
}

}  // namespace conifer
