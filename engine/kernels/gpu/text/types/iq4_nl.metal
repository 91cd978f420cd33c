// IQ4_NL: d (half), 16 bytes of indices into the codebook, whose bytes are around 128.
struct IQ4_NL {
  enum { WEIGHTS = 32, BYTES = 18, GROUPS = 1 };

  static uint first(uint part, uint i) { return 4 * i; }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
#pragma unroll
    for (uint i = 0; i < 4; i++) {
      const uint nibbles = word_of_halves(block + 2 + 4 * i);
      words[i] = codes(nibbles);
      words[4 + i] = codes(nibbles >> 4);
    }
    scales[0] = half_at(block);
    offsets[0] = -128.0f * scales[0];
  }
};
