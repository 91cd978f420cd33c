// Norm and rotary embedding, using the kernels for the current instruction set.
#include "blocks/norm_rope.h"

#include <algorithm>
#include <cmath>

#include "isa/kernels.h"

namespace conifer::blocks {

void normalize(const float* x, const Norm& norm, int64_t n, float* y) {
  if (norm.centred) isa::kernels().layer_norm(x, norm.weight, norm.bias, norm.eps, n, y);
  else isa::kernels().rms_norm(x, norm.weight, norm.eps, n, y);
}

void rotate(float* x, const float* cosines, const float* sines, int64_t dims, bool interleaved) {
  isa::kernels().rotate(x, cosines, sines, dims, interleaved);
}

bool Rotation::holds(const Rope& rope, int64_t offset, int64_t tokens) const {
  return offset == offset_ && tokens <= tokens_ && rope.dims / 2 == pairs_ &&
         rope.magnitude == magnitude_ && std::equal(periods_.begin(), periods_.end(), rope.periods);
}

const Rotation& Rotations::prepare(const Rope& rope, int64_t offset, int64_t tokens) {
  for (const Rotation& rotation : kept_)
    if (rotation.holds(rope, offset, tokens)) return rotation;
  Rotation& oldest = kept_[next_++ % KEPT];
  oldest.fill(rope, offset, tokens);
  return oldest;
}

void Rotation::fill(const Rope& rope, int64_t offset, int64_t tokens) {
  pairs_ = rope.dims / 2;
  offset_ = offset;
  tokens_ = tokens;
  magnitude_ = rope.magnitude;
  periods_.assign(rope.periods, rope.periods + pairs_);
  table_.resize(size_t(2 * tokens * pairs_));
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = 0; i < pairs_; ++i) {
      const double angle = double(offset + t) / double(periods_[size_t(i)]);
      table_[size_t(2 * t * pairs_ + i)] = float(std::cos(angle)) * magnitude_;
      table_[size_t((2 * t + 1) * pairs_ + i)] = float(std::sin(angle)) * magnitude_;
    }
}

}  // namespace conifer::blocks
