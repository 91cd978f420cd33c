// IQ1_S: d (half), low bytes of 32 indices of points, then for each 32 weights a word: the high three
// bits of its indices, a scale, and whether its weights move down or up by 1/8.
struct IQ1_S {
  enum { WEIGHTS = 256, BYTES = 50, GROUPS = 1 };

  static uint first(uint part, uint i) { return 32 * part + 4 * i; }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
    const uint rest = half_word(block + 34 + 2 * part);
#pragma unroll
    for (uint j = 0; j < 4; j++) {
      const uint point = points[uint(block[2 + 4 * part + j]) | (rest >> 3 * j & 7) << 8];
      words[2 * j] = spread_pairs(point);
      words[2 * j + 1] = spread_pairs(point >> 8);
    }
    scales[0] = half_at(block) * float(2 * (rest >> 12 & 7) + 1);
    offsets[0] = scales[0] * (rest >> 15 ? -1.125f : -0.875f);
  }
};
