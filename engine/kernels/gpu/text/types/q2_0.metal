// Q2_0: d (half), 16 bytes of four weights each.
struct Q2_0 {
  enum { WEIGHTS = 64, BYTES = 18, GROUPS = 1 };

  static uint first(uint part, uint i) { return 32 * part + 4 * i; }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
#pragma unroll
    for (uint i = 0; i < 8; i++) words[i] = spread_pairs(block[2 + 8 * part + i]);
    scales[0] = half_at(block);
    offsets[0] = -scales[0];
  }
};
