// Tests the forms of the blocks that few models have against plain loops in float64: activations,
// norms after a block, given values, merged experts, routers of their own, short convolutions.
#include "block_support.h"

namespace {

constexpr int64_t WIDTH = 64;

// A layer norm or a root-mean-square norm, with its memory.
struct OwnedNorm {
  Floats32 gain = gaussians(WIDTH, 0.2, 1.0), bias = gaussians(WIDTH);
  Norm norm;

  explicit OwnedNorm(bool centred = false)
      : norm{gain.data(), 1e-5f, centred ? bias.data() : nullptr, centred} {}
};

struct Form {
  Activation activation = Activation::Silu;
  float limit = 0.0f;
  bool gated = true, centred = false, post_norm = false, normed = true;
  float residual = 1.0f;
};

constexpr Form FORMS[] = {
    {.activation = Activation::Gelu, .post_norm = true},
    {.activation = Activation::Capped, .limit = 0.4f, .residual = 0.5f},
    {.activation = Activation::Silu, .centred = true},
    {.activation = Activation::Gelu, .post_norm = true, .normed = false, .residual = 2.0f},
    {.gated = false, .post_norm = true},
};

// y = base + residual * norm(result).
Doubles ended(const Floats32& base, Doubles result, const Norm& post_norm, float residual) {
  if (post_norm.weight) result = normed(result, post_norm, WIDTH);
  for (size_t i = 0; i < result.size(); ++i) result[i] = base[i] + residual * result[i];
  return result;
}

void test_dense_form(const Form& form, bool given, Type type, Pool& pool) {
  const int64_t hidden = 96;
  const Weights gate(type, hidden, WIDTH), up(type, hidden, WIDTH), down(type, WIDTH, hidden);
  const OwnedNorm norm(form.centred), post(false);
  DenseLayer layer{form.normed ? norm.norm : Norm{},
                   gate.matrix,
                   up.matrix,
                   down.matrix,
                   form.residual,
                   form.activation,
                   form.limit};
  if (form.post_norm) layer.post_norm = post.norm;
  if (!form.gated) layer.gate = {};
  if (given) layer.up = {}, layer.given_at = 7;
  Workspace work;
  for (int64_t tokens : {1, 3, 33, 1}) {
    const Floats32 x = gaussians(tokens * WIDTH), base = gaussians(tokens * WIDTH);
    const Floats32 values = gaussians(tokens * (hidden + 9));
    Floats32 y(x.size());
    dense_block(layer, x.data(), tokens, y.data(), work, pool, base.data(),
                {values.data(), hidden + 9});
    Doubles h(x.begin(), x.end());
    if (form.normed) h = normed(h, norm.norm, WIDTH);
    const Doubles gates = multiply(gate, h);
    Doubles ups = multiply(up, h);
    for (size_t i = 0; i < ups.size(); ++i) {
      const size_t row = i / size_t(hidden), column = i % size_t(hidden);
      if (given) ups[i] = values[row * size_t(hidden + 9) + column + 7];
      ups[i] = activated(form.activation, form.limit, form.gated, gates[i], ups[i]);
    }
    const Doubles want = ended(base, multiply(down, ups), layer.post_norm, form.residual);
    const std::string what = "dense form " + std::to_string(int(form.activation)) +
                             (given ? " given" : "") + " T " + std::to_string(tokens);
    expect_close(y.data(), want, type == Type::Q8_0 ? 1.5e-2 : 3e-6, what);
  }
}

struct ExpertForm {
  bool merged = false, on_input = false, own_router = false, post_norm = false, shared = false;
  Gating gating = Gating::Softmax;
};

void test_expert_form(const ExpertForm& form, Type type, Pool& pool) {
  const int64_t hidden = 32, experts = 6, used = 2;
  const Weights gate(type, hidden, WIDTH, experts), up(type, hidden, WIDTH, experts);
  const Weights down(type, WIDTH, hidden, experts), router(Type::F32, experts, WIDTH);
  const Weights shared_gate(type, hidden, WIDTH), shared_up(type, hidden, WIDTH);
  const Weights shared_down(type, WIDTH, hidden);
  const OwnedNorm norm(false), router_norm(false), post(false);
  const Floats32 biases = gaussians(2 * hidden * experts);
  // One matrix for each expert: the rows of its gate, then those of its up projection.
  std::vector<uint8_t> both;
  const size_t bytes = size_t(hidden * quant::row_bytes(type, WIDTH));
  for (size_t e = 0; e < size_t(experts); ++e)
    for (const Weights* part : {&gate, &up})
      both.insert(both.end(), part->bytes.begin() + int64_t(e * bytes),
                  part->bytes.begin() + int64_t((e + 1) * bytes));
  ExpertLayer layer{norm.norm, router.matrix, gate.matrix,
                    up.matrix, down.matrix,   {experts, used, false, 1.5f, form.gating}};
  layer.activation = Activation::Gelu, layer.residual = 0.5f;
  layer.weight_on_input = form.on_input;
  if (form.merged) {
    layer.merged_rows = 2 * hidden;
    layer.gate.data = both.data(), layer.up.data = both.data() + bytes;
    layer.gate_bias = biases.data(), layer.up_bias = biases.data() + hidden;
  }
  if (form.own_router) layer.router_norm = router_norm.norm;
  if (form.post_norm) layer.post_norm = post.norm;
  if (form.shared) {
    layer.shared_gate = shared_gate.matrix, layer.shared_up = shared_up.matrix;
    layer.shared_down = shared_down.matrix;
    layer.shared_activation = Activation::Capped, layer.shared_limit = 0.3f;
  }
  Workspace work;
  for (int64_t tokens : {1, 3, 70, 1}) {
    const Floats32 x = gaussians(tokens * WIDTH), base = gaussians(tokens * WIDTH);
    Floats32 y(x.size());
    moe_block(layer, x.data(), tokens, y.data(), work, pool, nullptr, base.data());
    const Doubles h = normed(Doubles(x.begin(), x.end()), norm.norm, WIDTH);
    const Doubles scored =
        form.own_router ? normed(Doubles(x.begin(), x.end()), router_norm.norm, WIDTH) : h;
    const Doubles logits = multiply(router, scored);
    Doubles result(x.size());
    for (int64_t t = 0; t < tokens; ++t) {
      const Floats32 row(logits.begin() + t * experts, logits.begin() + (t + 1) * experts);
      int32_t ids[2];
      float weights[2];
      route(layer.routing, row.data(), ids, weights);
      const Doubles token(h.begin() + t * WIDTH, h.begin() + (t + 1) * WIDTH);
      const auto add = [&](const Weights& g, const Weights& u, const Weights& d, int64_t e,
                           double weight, bool routed) {
        Doubles gates = multiply(g, token, e), ups = multiply(u, token, e);
        for (int64_t i = 0; i < hidden; ++i) {
          double &a = gates[size_t(i)], &b = ups[size_t(i)];
          if (routed && form.on_input) a *= weight, b *= weight;
          if (routed && form.merged) a += biases[size_t(2 * e * hidden + i)];
          if (routed && form.merged) b += biases[size_t((2 * e + 1) * hidden + i)];
          b = activated(routed ? Activation::Gelu : Activation::Capped, 0.3f, true, a, b);
        }
        const Doubles part = multiply(d, ups, e);
        for (int64_t i = 0; i < WIDTH; ++i)
          result[size_t(t * WIDTH + i)] +=
              part[size_t(i)] * (routed && form.on_input ? 1.0 : weight);
      };
      for (int j : {0, 1}) add(gate, up, down, ids[j], weights[j], true);
      if (form.shared) add(shared_gate, shared_up, shared_down, 0, 1.0, false);
    }
    const Doubles want = ended(base, result, layer.post_norm, 0.5f);
    expect_close(y.data(), want, type == Type::Q8_0 ? 2e-2 : 3e-6,
                 "expert form T " + std::to_string(tokens));
  }
}

void test_convolution(Type type, Pool& pool) {
  const int64_t kernel = 3, most = 40;
  const Weights input(type, 3 * WIDTH, WIDTH), output(type, WIDTH, WIDTH);
  const OwnedNorm norm(false);
  const Floats32 taps = gaussians(kernel * WIDTH);
  const ConvLayer layer{norm.norm, input.matrix, output.matrix, taps.data(), kernel, 0.5f};
  Workspace work;
  Floats32 tails[3] = {Floats32(2 * WIDTH), Floats32(2 * WIDTH), Floats32(2 * WIDTH)};
  RecurrentState states[3] = {
      {tails[0].data(), nullptr}, {tails[1].data(), nullptr}, {tails[2].data(), nullptr}};
  Doubles gated, after;  // of all tokens so far
  Floats32 all;
  bool first = true;
  for (int64_t tokens : {int64_t{1}, int64_t{2}, most, int64_t{1}}) {
    const Floats32 x = gaussians(tokens * WIDTH);
    Floats32 y(x.size());
    const bool marks = tokens == most;
    const RecurrentStates saved{first ? nullptr : &states[0], marks ? &states[1] : nullptr,
                                &states[2], marks ? tokens - 1 : 0};
    conv_block(layer, saved, x.data(), tokens, y.data(), work, pool);
    const Doubles made = multiply(input, normed(Doubles(x.begin(), x.end()), norm.norm, WIDTH));
    Doubles mixed;
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t c = 0; c < WIDTH; ++c) {
        const double* row = made.data() + 3 * t * WIDTH + c;
        gated.push_back(row[0] * row[2 * WIDTH]);
        double sum = 0.0;
        for (int64_t i = 0; i < kernel; ++i) {
          const int64_t at = int64_t(gated.size()) - 1 - (kernel - 1 - i) * WIDTH;
          if (at >= 0) sum += taps[size_t(i * WIDTH + c)] * gated[size_t(at)];
        }
        mixed.push_back(row[WIDTH] * sum);
      }
    const double tolerance = type == Type::Q8_0 ? 2e-2 : 3e-6;
    expect_close(y.data(), ended(x, multiply(output, mixed), {}, 0.5f), tolerance,
                 "convolution T " + std::to_string(tokens));
    const auto tail = [&](size_t end) {
      return Doubles(gated.begin() + int64_t(end) - 2 * WIDTH, gated.begin() + int64_t(end));
    };
    if (gated.size() >= 2 * WIDTH)
      expect_close(tails[2].data(), tail(gated.size()), tolerance, "convolution's tail");
    if (marks)
      expect_close(tails[1].data(), tail(gated.size() - WIDTH), tolerance, "convolution's mark");
    tails[0] = tails[2], states[0].tail = tails[0].data();
    first = false;
  }
}

void test_end(Pool& pool) {
  const OwnedNorm norm(false);
  Workspace work;
  for (int64_t tokens : {1, 5}) {
    const Floats32 x = gaussians(tokens * WIDTH), side = gaussians(tokens * WIDTH);
    Floats32 y(x.size());
    end_block({norm.norm, 0.5f}, x.data(), side.data(), tokens, WIDTH, y.data(), work, pool);
    Doubles want = normed(Doubles(side.begin(), side.end()), norm.norm, WIDTH);
    for (size_t i = 0; i < want.size(); ++i) want[i] = 0.5 * (x[i] + want[i]);
    expect_close(y.data(), want, 1e-6, "end of a block");
    end_block({{}, 0.25f}, x.data(), nullptr, tokens, WIDTH, y.data(), work, pool);
    for (size_t i = 0; i < y.size(); ++i) expect(y[i] == 0.25f * x[i], "scale of a block");
  }
}

void test_sparse_mixer() {
  const Floats32 logits = {0.5f, 2.0f, 1.99f, -3.0f};
  int32_t ids[2];
  float weights[2];
  route({4, 2, false, 1.0f, Gating::SparseMixer}, logits.data(), ids, weights);
  expect(ids[0] == 1 && ids[1] == 2, "sparse mixer: one after the other");
  const float near = 1.0f / (1.0f + std::exp(-0.01f));
  expect(std::abs(weights[0] - near) < 1e-6f, "sparse mixer: the near ones share");
  expect(std::abs(weights[1] - 1.0f) < 1e-6f, "sparse mixer: the chosen one is left out");
}

void test_forms(Pool& pool) {
  for (Type type : {Type::F32, Type::Q8_0}) {
    for (const Form& form : FORMS)
      for (bool given : {false, true}) test_dense_form(form, given, type, pool);
    test_expert_form({.merged = true}, type, pool);
    test_expert_form({.on_input = true, .shared = true, .gating = Gating::Sigmoid}, type, pool);
    test_expert_form({.own_router = true, .post_norm = true}, type, pool);
    test_expert_form({.gating = Gating::SparseMixer}, type, pool);
    test_convolution(type, pool);
  }
  test_end(pool);
}

}  // namespace

int main() {
  test_sparse_mixer();
  return run_everywhere(test_forms);
}
