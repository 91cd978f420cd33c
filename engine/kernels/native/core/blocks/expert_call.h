// What the functions for a mixture of experts share: one call, and where an expert's matrices are.
#pragma once

#include <algorithm>

#include "blocks/steps.h"
#include "isa/kernels.h"

namespace conifer::blocks {

inline Matrix expert(const Matrix& first, int64_t id, const uint8_t* data) {
  Matrix matrix = first;
  if (!first.data) return matrix;
  matrix.data = data;
  if (first.scale) matrix.scale += id;
  return matrix;
}

// Row `id` of the biases for all experts, which may be null.
inline const float* bias_of(const float* biases, int64_t id, int64_t n) {
  return biases ? biases + id * n : nullptr;
}

// One expert's gate, which may be missing, and up projections.
struct Gated {
  Matrix gate, up;
  const float* gate_bias;  // both biases may be null
  const float* up_bias;
  Activation activation;
  float limit;

  // Apply the activation to the rows for n tokens. Overwrites `gate`; both are (n, hidden).
  // weigh(i): token i's factor on the expert's input, which its projections only pass on.
  template <class Weigh>
  void finish(float* gate_out, float* up_out, int64_t n, Range rows, Weigh&& weigh) const {
    const isa::KernelTable& kernels = isa::kernels();
    const int64_t hidden = up.rows, count = rows.end - rows.begin;
    for (int64_t i = 0; i < n; ++i) {
      float* g = gate_out + i * hidden + rows.begin;
      float* u = up_out + i * hidden + rows.begin;
      if (const float weight = weigh(i); weight != 1.0f) {
        if (gate.data) kernels.scale(g, weight, count, g);
        kernels.scale(u, weight, count, u);
      }
      if (gate_bias) kernels.add(g, gate_bias + rows.begin, count, g);
      if (up_bias) kernels.add(u, up_bias + rows.begin, count, u);
      if (gate.data) activate(activation, limit, g, u, count, g);
      else squared_relu(u, count, g);
    }
  }
};

struct ExpertCall {
  const ExpertLayer& layer;
  const float* base;  // added to the result, unless null
  int64_t tokens;
  float* y;
  Workspace::Parts& parts;
  Pool& pool;
  RowSharing* hidden_rows;  // for a single token
  RowSharing* output_rows;
  bool decodes;
  int64_t first_block;  // as in Workspace
  float residual;

  int64_t width() const { return layer.up.cols; }
  int64_t hidden() const { return layer.up.rows; }
  int64_t used() const { return layer.routing.used; }
  int64_t shared() const { return layer.shared_up.data ? layer.shared_up.rows : 0; }

  // The block of tokens to which a token belongs.
  Range block_of(int64_t token) const {
    if (first_block == 0) return {0, tokens};
    if (token < first_block) return {0, first_block};
    const int64_t begin = token - (token - first_block) % quant::BLOCK_TOKENS;
    return {begin, std::min(begin + quant::BLOCK_TOKENS, tokens)};
  }

  int64_t input_rows() const { return layer.merged_rows ? layer.merged_rows : hidden(); }

  // An expert in memory. With merged rows, gate and up are one matrix.
  store::Addresses resident(int64_t id) const {
    const auto at = [&](const Matrix& first, int64_t rows) {
      return first.data ? first.data + id * rows * first.stride() : nullptr;
    };
    const int64_t rows = input_rows();
    return {at(layer.gate, rows), layer.merged_rows ? nullptr : at(layer.up, rows),
            at(layer.down, width())};
  }

  Gated gated(int64_t id, const store::Addresses& at) const {
    const int64_t rows = input_rows();
    const uint8_t* up =
        layer.merged_rows ? at[store::GATE] + hidden() * layer.up.stride() : at[store::UP];
    return {expert(layer.gate, id, at[store::GATE]),
            expert(layer.up, id, up),
            bias_of(layer.gate_bias, id, rows),
            bias_of(layer.up_bias, id, rows),
            layer.activation,
            layer.limit};
  }
  Gated gated_shared() const {
    return {layer.shared_gate, layer.shared_up,         nullptr,
            nullptr,           layer.shared_activation, layer.shared_limit};
  }
  Matrix down(int64_t id, const store::Addresses& at) const {
    return expert(layer.down, id, at[store::DOWN]);
  }

  // A router's weight as a factor on an expert's input, and on its result.
  float on_input(float weight) const { return layer.weight_on_input ? weight : 1.0f; }
  float on_result(float weight) const {
    return layer.weight_on_input ? residual : residual * weight;
  }
};

}  // namespace conifer::blocks
