// IQ2_S: d (half), low bytes of 32 indices of points, 32 bytes of signs, high bits of the indices
// (8 bytes), 16 scales of 4 bits.
struct IQ2_S {
  enum { WEIGHTS = 256, BYTES = 82, GROUPS = 2 };

  static uint first(uint part, uint i) { return 32 * part + 4 * i; }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
    const uint high = block[66 + part];
#pragma unroll
    for (uint j = 0; j < 4; j++) {
      const uint index = uint(block[2 + 4 * part + j]) | (high >> 2 * j & 3) << 8;
      const uint point = points[index], signs = block[34 + 4 * part + j];
      words[2 * j] = with_signs(iq2_levels(spread_pairs(point)), signs);
      words[2 * j + 1] = with_signs(iq2_levels(spread_pairs(point >> 8)), signs >> 4);
    }
    const float d = half_at(block);
#pragma unroll
    for (uint g = 0; g < 2; g++) {
      scales[g] = d * (0.5f + float(block[74 + part] >> 4 * g & 15)) * 0.25f;
      offsets[g] = -128.0f * scales[g];
    }
  }
};
