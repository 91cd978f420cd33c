// IQ2_XXS: d (half), then for each 32 weights 4 indices of points (4 bytes) and a word with 4 times
// 7 signs and a scale.
struct IQ2_XXS {
  enum { WEIGHTS = 256, BYTES = 66, GROUPS = 1 };

  static uint first(uint part, uint i) { return 32 * part + 4 * i; }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
    const uint indices = word_of_halves(block + 2 + 8 * part);
    const uint rest = word_of_halves(block + 6 + 8 * part);
#pragma unroll
    for (uint j = 0; j < 4; j++) {
      const uint point = points[indices >> 8 * j & 255], signs = eight_signs(rest >> 7 * j & 127);
      words[2 * j] = with_signs(iq2_levels(spread_pairs(point)), signs);
      words[2 * j + 1] = with_signs(iq2_levels(spread_pairs(point >> 8)), signs >> 4);
    }
    scales[0] = half_at(block) * (0.5f + float(rest >> 28)) * 0.25f;
    offsets[0] = -128.0f * scales[0];
  }
};
