// IQ3_XXS: d (half), 64 indices of points of four weights, then for each 32 weights a word with 4
// times 7 signs and a scale.
struct IQ3_XXS {
  enum { WEIGHTS = 256, BYTES = 98, GROUPS = 1 };

  static uint first(uint part, uint i) { return 32 * part + 4 * i; }

  // The magnitudes 4, 12, 20, 28, 36, 44, 52 and 62.
  static uint levels(uint digits) {
    return 0x04040404 + 8 * digits + 2 * (digits & digits >> 1 & digits >> 2 & 0x01010101);
  }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
    const uint rest = word_of_halves(block + 66 + 4 * part);
#pragma unroll
    for (uint i = 0; i < 8; i++) {
      const uint signs = eight_signs(rest >> 7 * (i / 2) & 127) >> 4 * (i % 2);
      words[i] = with_signs(levels(spread_threes(points[block[2 + 8 * part + i]])), signs);
    }
    scales[0] = half_at(block) * (0.5f + float(rest >> 28)) * 0.5f;
    offsets[0] = -128.0f * scales[0];
  }
};
