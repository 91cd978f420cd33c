// IQ2_XS: d (half), 32 words with the index of a point (9 bits) and 7 signs, 16 scales of 4 bits.
struct IQ2_XS {
  enum { WEIGHTS = 256, BYTES = 74, GROUPS = 2 };

  static uint first(uint part, uint i) { return 32 * part + 4 * i; }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
#pragma unroll
    for (uint j = 0; j < 4; j++) {
      const uint both = half_word(block + 2 + 8 * part + 2 * j);
      const uint point = points[both & 511], signs = eight_signs(both >> 9);
      words[2 * j] = with_signs(iq2_levels(spread_pairs(point)), signs);
      words[2 * j + 1] = with_signs(iq2_levels(spread_pairs(point >> 8)), signs >> 4);
    }
    const float d = half_at(block);
#pragma unroll
    for (uint g = 0; g < 2; g++) {
      scales[g] = d * (0.5f + float(block[66 + part] >> 4 * g & 15)) * 0.25f;
      offsets[g] = -128.0f * scales[g];
    }
  }
};
