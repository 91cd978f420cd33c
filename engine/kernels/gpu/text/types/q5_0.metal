// Q5_0: d (half), 4 bytes of fifth bits, 16 of nibbles.
struct Q5_0 {
  enum { WEIGHTS = 32, BYTES = 22, GROUPS = 1 };

  static uint first(uint part, uint i) { return 4 * i; }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
    const uint fifth = word_of_halves(block + 2);
#pragma unroll
    for (uint i = 0; i < 4; i++) {
      const uint nibbles = word_of_halves(block + 6 + 4 * i);
      words[i] = (nibbles & 0x0f0f0f0f) | spread_bits(fifth >> 4 * i) << 4;
      words[4 + i] = (nibbles >> 4 & 0x0f0f0f0f) | spread_bits(fifth >> (16 + 4 * i)) << 4;
    }
    scales[0] = half_at(block);
    offsets[0] = -16.0f * scales[0];
  }
};
