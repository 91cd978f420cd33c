// Q2_K: 16 scales and minima (a nibble each), 64 bytes of two bits, d and dmin (half).
struct Q2_K {
  enum { WEIGHTS = 256, BYTES = 84, GROUPS = 4 };

  static uint first(uint part, uint i) {
    return 128 * (part / 4) + 8 * (part % 4) + 32 * (i / 2) + 4 * (i % 2);
  }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
    const uint side = part / 4, at = 8 * (part % 4);
    const device uint* packed = (const device uint*)(block + 16 + 32 * side + at);
#pragma unroll
    for (uint i = 0; i < 2; i++) {
#pragma unroll
      for (uint g = 0; g < 4; g++) words[2 * g + i] = packed[i] >> 2 * g & 0x03030303;
    }
    const float d = half_at(block + 80), dmin = half_at(block + 82);
#pragma unroll
    for (uint g = 0; g < 4; g++) {
      const uint both = block[8 * side + 2 * g + at / 16];
      scales[g] = d * float(both & 15);
      offsets[g] = -dmin * float(both >> 4);
    }
  }
};
