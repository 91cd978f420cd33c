// Q3_K: 32 bytes of third bits, 64 of two low bits, 16 scales of 6 bits in 12 bytes, d (half).
struct Q3_K {
  enum { WEIGHTS = 256, BYTES = 110, GROUPS = 4 };

  static uint first(uint part, uint i) {
    return 128 * (part / 4) + 8 * (part % 4) + 32 * (i / 2) + 4 * (i % 2);
  }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
    const uint side = part / 4, at = 8 * (part % 4);
    const device uchar* packed = block + 96;
    const float d = half_at(block + 108);
#pragma unroll
    for (uint i = 0; i < 2; i++) {
      const uint low = word_of_halves(block + 32 + 32 * side + at + 4 * i);
      const uint third = word_of_halves(block + at + 4 * i) >> (4 * side);
#pragma unroll
      for (uint g = 0; g < 4; g++)
        words[2 * g + i] = (low >> 2 * g & 0x03030303) | (third >> g & 0x01010101) << 2;
    }
#pragma unroll
    for (uint g = 0; g < 4; g++) {
      const uint number = 8 * side + 2 * g + at / 16;
      const uint low = uint(packed[number % 8]) >> (4 * (number / 8)) & 15;
      const uint high = uint(packed[8 + number % 4]) >> (2 * (number / 4)) & 3;
      scales[g] = d * (float(low | high << 4) - 32.0f);
      offsets[g] = -4.0f * scales[g];
    }
  }
};
