// The activations of engine/nn/mlp.py, by number.
template <int ACTIVATION>
inline float activated(float gate, float up, float limit) {
  const float silu = gate / (1.0f + exponential(-gate));
  const float clipped = up < -limit ? -limit : (up > limit ? limit : up);
  if (ACTIVATION == 0) return silu * up;
  if (ACTIVATION == 1) return (silu < limit ? silu : limit) * clipped;
  if (ACTIVATION == 2) {  // gate * sigmoid(1.702 gate) * (up + 1)
    const float capped = gate < limit ? gate : limit;
    return capped / (1.0f + exponential(-1.702f * capped)) * (clipped + 1.0f);
  }
  // gelu(gate) * up: (1 + tanh(z)) / 2 is the sigmoid of 2 z
  const float z = 0.7978845608028654f * (gate + 0.044715f * gate * gate * gate);
  return gate / (1.0f + exponential(-2.0f * z)) * up;
}
