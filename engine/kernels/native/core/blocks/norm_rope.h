// Norms and rotary embedding, in float32, of one row at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace conifer::blocks {

// A root-mean-square norm, or a layer norm if `centred`.
struct Norm {
  const float* weight;  // (n,); null if there is no norm
  float eps;
  const float* bias = nullptr;  // (n,); only for a layer norm; may be null
  bool centred = false;
};

// Pairs are (2i, 2i+1) if interleaved, else (i, i + dims/2). Values past `dims` do not change.
struct Rope {
  const float* periods;  // (dims/2,) period / 2 pi of each pair
  int64_t dims;
  bool interleaved;
  float magnitude;  // factor on cos and sin
};

// y = x / sqrt(mean(x^2) + eps) * weight, or (x - mean) / sqrt(variance + eps) * weight + bias.
// y may be x.
void normalize(const float* x, const Norm& norm, int64_t n, float* y);

// Rotate one head's values in place, with the cos and sin of its position, (dims/2,) each.
void rotate(float* x, const float* cosines, const float* sines, int64_t dims, bool interleaved);

// Cosines and sines for consecutive positions.
class Rotation {
 public:
  bool holds(const Rope& rope, int64_t offset, int64_t tokens) const;
  void fill(const Rope& rope, int64_t offset, int64_t tokens);
  const float* cosines(int64_t token) const { return table_.data() + 2 * token * pairs_; }
  const float* sines(int64_t token) const { return cosines(token) + pairs_; }

 private:
  std::vector<float> periods_, table_;  // table: for each token, cosines, then sines
  int64_t pairs_ = 0, offset_ = 0, tokens_ = 0;
  float magnitude_ = 1.0f;
};

// The most recent tables: a step's layers share a few rotary embeddings.
class Rotations {
 public:
  // The table is valid until KEPT others have been prepared.
  const Rotation& prepare(const Rope& rope, int64_t offset, int64_t tokens);

 private:
  static constexpr size_t KEPT = 4;
  Rotation kept_[KEPT];
  size_t next_ = 0;
};

}  // namespace conifer::blocks
