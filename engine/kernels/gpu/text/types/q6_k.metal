// Q6_K: 128 bytes of low nibbles, 64 of two high bits, 16 signed scales, d (half).
struct Q6_K {
  enum { WEIGHTS = 256, BYTES = 210, GROUPS = 4 };

  static uint first(uint part, uint i) {
    return 128 * (part / 4) + 8 * (part % 4) + 32 * (i / 2) + 4 * (i % 2);
  }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
    const uint side = part / 4, at = 8 * (part % 4);
    const device uchar* low = block + 64 * side + at;
    const device uchar* high = block + 128 + 32 * side + at;
    const float d = half_at(block + 208);
#pragma unroll
    for (uint i = 0; i < 2; i++) {
      const uint one = word_of_halves(low + 4 * i), two = word_of_halves(low + 32 + 4 * i);
      const uint top = word_of_halves(high + 4 * i);
      words[i] = (one & 0x0f0f0f0f) | (top & 0x03030303) << 4;
      words[2 + i] = (two & 0x0f0f0f0f) | (top & 0x0c0c0c0c) << 2;
      words[4 + i] = (one >> 4 & 0x0f0f0f0f) | (top & 0x30303030);
      words[6 + i] = (two >> 4 & 0x0f0f0f0f) | (top & 0xc0c0c0c0) >> 2;
    }
#pragma unroll
    for (uint g = 0; g < 4; g++) {
      const int scale = block[192 + 8 * side + 2 * g + at / 16];
      scales[g] = d * float((scale ^ 128) - 128);
      offsets[g] = -32.0f * scales[g];
    }
  }
};
