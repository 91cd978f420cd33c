// TQ2_0: 64 bytes of two bits, d (half). A share has eight bytes of one half of the block.
struct TQ2_0 {
  enum { WEIGHTS = 256, BYTES = 66, GROUPS = 1 };

  static uint first(uint part, uint i) {
    return 128 * (part / 4) + 8 * (part % 4) + 32 * (i / 2) + 4 * (i % 2);
  }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
#pragma unroll
    for (uint i = 0; i < 2; i++) {
      const uint pairs = word_of_halves(block + 32 * (part / 4) + 8 * (part % 4) + 4 * i);
#pragma unroll
      for (uint g = 0; g < 4; g++) words[2 * g + i] = pairs >> 2 * g & 0x03030303;
    }
    scales[0] = half_at(block + 64);
    offsets[0] = -scales[0];
  }
};
