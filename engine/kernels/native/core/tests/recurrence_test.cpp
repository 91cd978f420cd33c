// Tests the recurrent layers' loops against plain loops in float64, on every instruction set that
// this CPU supports. Exits with the number of failures.
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "everywhere.h"
#include "recurrent/recurrence.h"

using namespace conifer;
using namespace conifer::recurrent;
using namespace conifer::tests;

namespace {

using Doubles = std::vector<double>;
using Floats = std::vector<float>;

std::mt19937_64 generator(11);
Floats gaussians(int64_t n) {
  Floats x(static_cast<size_t>(n));
  for (float& value : x) value = std::normal_distribution<float>()(generator);
  return x;
}

void expect_close(const Floats& got, const Doubles& want, const std::string& what) {
  ++checks;
  double worst = got.size() == want.size() ? 0.0 : 1.0;
  for (size_t i = 0; i < want.size() && i < got.size(); ++i) {
    const double off = std::fabs(got[i] - want[i]) / (1.0 + std::fabs(want[i]));
    if (!(off <= worst)) worst = off;  // also if `off` is NaN
  }
  if (worst <= 2e-5) return;
  ++failures;
  std::printf("FAIL %s: %g\n", what.c_str(), worst);
}

double silu(double x) { return x / (1.0 + std::exp(-x)); }

void test_convolution(Pool& pool, int64_t tokens, int64_t channels, int64_t kernel, bool full) {
  const Floats x = gaussians(tokens * channels), tail = gaussians((kernel - 1) * channels);
  const Floats taps = gaussians(kernel * channels), bias = gaussians(channels);
  Floats y(x.size()), behind(tail.size());
  convolve({x.data(), tail.data(), taps.data(), full ? bias.data() : nullptr, tokens, channels,
            kernel, channels, full},
           y.data(), behind.data(), pool);
  Floats all = tail;
  all.insert(all.end(), x.begin(), x.end());
  Doubles want;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t c = 0; c < channels; ++c) {
      double total = full ? bias[c] : 0.0;
      for (int64_t i = 0; i < kernel; ++i)
        total += double(all[(t + i) * channels + c]) * taps[i * channels + c];
      want.push_back(full ? silu(total) : total);
    }
  const std::string what = "convolution of " + std::to_string(channels);
  expect_close(y, want, what);
  expect_close(behind, Doubles(all.end() - int64_t(tail.size()), all.end()), what + ", tail");
}

void test_scan(Pool& pool, int64_t tokens, int64_t a, int64_t b, bool tiled, int64_t n, int64_t p,
               bool delta, bool channels = false) {
  const int64_t heads = a * b, keys = tiled ? b : a;
  const Floats q = gaussians(tokens * keys * n), k = gaussians(tokens * keys * n);
  const Floats v = gaussians(tokens * heads * p), state = gaussians(heads * n * p);
  const int64_t decays = channels ? n : 1;
  Floats decay = gaussians(tokens * heads * decays), beta = gaussians(tokens * heads);
  for (float& x : decay) x = -std::exp(x);
  for (float& x : beta) x = 1.0f / (1.0f + std::exp(-x));
  Floats y(v.size()), end(state.size());
  const float eps = 1e-3f;
  scan({q.data(), k.data(), v.data(), decay.data(), delta ? beta.data() : nullptr, state.data(),
        tokens, a, b, keys, tiled ? 0 : 1, tiled ? 1 : 0, n, p, eps, channels},
       y.data(), end.data(), pool);
  Doubles s(state.begin(), state.end()), want(v.size());
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t key = t * keys + (tiled ? h % b : h / b);
      double qq = eps, kk = eps;
      for (int64_t i = 0; i < n; ++i) {
        qq += double(q[key * n + i]) * q[key * n + i];
        kk += double(k[key * n + i]) * k[key * n + i];
      }
      const double fq = delta ? 1.0 / std::sqrt(qq * n) : 1.0;
      const double fk = delta ? 1.0 / std::sqrt(kk) : 1.0;
      const auto kept = [&](int64_t i) {
        return std::exp(double(decay[(t * heads + h) * decays + (channels ? i : 0)]));
      };
      for (int64_t j = 0; j < p; ++j) {
        double* column = s.data() + h * n * p + j;
        const int64_t at = (t * heads + h) * p + j;
        double u = v[at], known = 0.0, read = 0.0;
        for (int64_t i = 0; i < n; ++i) known += (column[i * p] *= kept(i)) * k[key * n + i] * fk;
        if (delta) u = beta[t * heads + h] * (u - known);
        for (int64_t i = 0; i < n; ++i)
          read += (column[i * p] += k[key * n + i] * fk * u) * q[key * n + i] * fq;
        want[at] = read;
      }
    }
  const std::string what = std::string(channels ? "delta rule with decays of channels"
                                       : delta  ? "delta rule"
                                                : "recurrence") +
                           " of " + std::to_string(n) + " by " + std::to_string(p);
  expect_close(y, want, what);
  expect_close(end, s, what + ", state");
}

void test_gated_norm(Pool& pool, int64_t rows, int64_t weights, int64_t n, bool gate_first) {
  const int64_t tokens = 7;
  const Floats y = gaussians(tokens * rows * n), gate = gaussians(tokens * rows * n);
  const Floats weight = gaussians(weights * n);
  Floats out(y.size());
  gated_norm({y.data(), gate.data(), weight.data(), tokens, rows, weights, n, 1e-2f, gate_first},
             out.data(), pool);
  Doubles want;
  for (int64_t row = 0; row < tokens * rows; ++row) {
    Doubles z;
    double total = 0.0;
    for (int64_t i = row * n; i < (row + 1) * n; ++i) {
      z.push_back(gate_first ? y[i] * silu(gate[i]) : y[i]);
      total += z.back() * z.back();
    }
    for (int64_t i = 0; i < n; ++i) {
      const double normed =
          z[i] / std::sqrt(total / n + 1e-2) * weight[row % rows % weights * n + i];
      want.push_back(gate_first ? normed : normed * silu(gate[row * n + i]));
    }
  }
  expect_close(out, want, "gated norm of " + std::to_string(n));
}

void test_all(Pool& pool) {
  for (int64_t tokens : {1, 2, 40})
    for (int64_t size : {1, 5, 64, 200}) {
      test_convolution(pool, tokens, size, 4, true);
      test_convolution(pool, tokens, size, 2, false);
    }
  for (int64_t tokens : {1, 2, 25})
    for (bool delta : {false, true}) {
      test_scan(pool, tokens, 1, 3, false, 16, 64, delta);
      test_scan(pool, tokens, 2, 3, true, 33, 70, delta);
      test_scan(pool, tokens, 3, 2, false, 1, 129, delta);
      test_scan(pool, tokens, 2, 2, true, 128, 128, delta);
    }
  for (int64_t tokens : {1, 25}) {
    test_scan(pool, tokens, 3, 1, false, 33, 70, true, true);
    test_scan(pool, tokens, 2, 1, false, 128, 128, true, true);
  }
  for (bool gate_first : {false, true})
    for (int64_t n : {1, 70, 512}) {
      test_gated_norm(pool, 3, 1, n, gate_first);
      test_gated_norm(pool, 3, 3, n, gate_first);
    }
}

}  // namespace

int main() { return run_everywhere(test_all); }
