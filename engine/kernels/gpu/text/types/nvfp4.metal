// NVFP4: 4 scales (four bits of exponent, three of mantissa), 32 bytes of indices into the
// codebook, which is doubled and moved by 12.
struct NVFP4 {
  enum { WEIGHTS = 64, BYTES = 36, GROUPS = 2 };

  static uint first(uint part, uint i) { return 32 * part + 4 * i; }

  static float half_scale(uint bits) {
    const uint exponent = bits >> 3 & 15, mantissa = bits & 7;
    if (bits == 127) return 0.0f;
    if (exponent == 0) return float(mantissa) * 0.0009765625f;
    return as_type<float>((exponent + 119) << 23 | mantissa << 20);
  }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
    const device uint* nibbles = (const device uint*)(block + 4 + 16 * part);
#pragma unroll
    for (uint g = 0; g < 2; g++) {
#pragma unroll
      for (uint i = 0; i < 2; i++) {
        words[4 * g + i] = codes(nibbles[2 * g + i]);
        words[4 * g + 2 + i] = codes(nibbles[2 * g + i] >> 4);
      }
      scales[g] = half_scale(block[2 * part + g]);
      offsets[g] = -12.0f * scales[g];
    }
  }
};
