// Q4_1: d and a minimum (half), 16 bytes of nibbles.
struct Q4_1 {
  enum { WEIGHTS = 32, BYTES = 20, GROUPS = 1 };

  static uint first(uint part, uint i) { return 4 * i; }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
    const device uint* nibbles = (const device uint*)(block + 4);
#pragma unroll
    for (uint i = 0; i < 4; i++) {
      words[i] = nibbles[i] & 0x0f0f0f0f;
      words[4 + i] = nibbles[i] >> 4 & 0x0f0f0f0f;
    }
    scales[0] = half_at(block);
    offsets[0] = half_at(block + 2);
  }
};
