// IQ4_XS: d (half), high two bits of 8 scales (2 bytes), their low four bits (4), 128 bytes of
// indices into the codebook, whose bytes are around 128.
struct IQ4_XS {
  enum { WEIGHTS = 256, BYTES = 136, GROUPS = 1 };

  static uint first(uint part, uint i) { return 32 * part + 4 * i; }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
    const device uint* nibbles = (const device uint*)(block + 8 + 16 * part);
#pragma unroll
    for (uint i = 0; i < 4; i++) {
      words[i] = codes(nibbles[i]);
      words[4 + i] = codes(nibbles[i] >> 4);
    }
    const uint low = uint(block[4 + part / 2]) >> (4 * (part % 2)) & 15;
    const uint high = half_word(block + 2) >> (2 * part) & 3;
    scales[0] = half_at(block) * (float(low | high << 4) - 32.0f);
    offsets[0] = -128.0f * scales[0];
  }
};
