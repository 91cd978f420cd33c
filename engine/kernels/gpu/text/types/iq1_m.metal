// IQ1_M: low bytes of 32 indices of points, a nibble for each (high three bits, and whether its
// weights move down or up by 1/8), four words of four 3-bit scales, whose high nibbles make d.
struct IQ1_M {
  enum { WEIGHTS = 256, BYTES = 56, GROUPS = 4 };

  static uint first(uint part, uint i) { return 32 * part + 4 * i; }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
    uint bits = 0;
#pragma unroll
    for (uint i = 0; i < 4; i++) bits |= half_word(block + 48 + 2 * i) >> 12 << 4 * i;
    const float d = float(as_type<half>(ushort(bits)));
    const uint steps = half_word(block + 48 + 2 * (part / 2)) >> 6 * (part % 2);
    const uint nibbles = half_word(block + 32 + 2 * part);
#pragma unroll
    for (uint j = 0; j < 4; j++) {
      const uint rest = nibbles >> 4 * j;
      const uint point = points[uint(block[4 * part + j]) | (rest & 7) << 8];
      words[2 * j] = spread_pairs(point);
      words[2 * j + 1] = spread_pairs(point >> 8);
      scales[j] = d * float(2 * (steps >> 3 * (j / 2) & 7) + 1);
      offsets[j] = scales[j] * (rest & 8 ? -1.125f : -0.875f);
    }
  }
};
