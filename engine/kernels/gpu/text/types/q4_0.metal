// Q4_0: d (half), 16 bytes of nibbles.
struct Q4_0 {
  enum { WEIGHTS = 32, BYTES = 18, GROUPS = 1 };

  static uint first(uint part, uint i) { return 4 * i; }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
#pragma unroll
    for (uint i = 0; i < 4; i++) {
      const uint nibbles = word_of_halves(block + 2 + 4 * i);
      words[i] = nibbles & 0x0f0f0f0f;
      words[4 + i] = nibbles >> 4 & 0x0f0f0f0f;
    }
    scales[0] = half_at(block);
    offsets[0] = -8.0f * scales[0];
  }
};
