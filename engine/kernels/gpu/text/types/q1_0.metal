// Q1_0: d (half), 16 bytes of signs.
struct Q1_0 {
  enum { WEIGHTS = 128, BYTES = 18, GROUPS = 1 };

  static uint first(uint part, uint i) { return 32 * part + 4 * i; }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
    const uint bits = word_of_halves(block + 2 + 4 * part);
#pragma unroll
    for (uint i = 0; i < 8; i++) words[i] = spread_bits(bits >> 4 * i) << 1;
    scales[0] = half_at(block);
    offsets[0] = -scales[0];
  }
};
