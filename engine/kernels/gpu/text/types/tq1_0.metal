// TQ1_0: base-3 digits, five to a byte in 32 and in 16 bytes, four to a byte in 4 bytes; d (half).
// A byte is the fraction 0.abcde in base 3, times 256.
struct TQ1_0 {
  enum { WEIGHTS = 256, BYTES = 54, GROUPS = 1 };

  static uint first(uint part, uint i) { return 32 * part + 4 * i; }

  // Digit `which` of each of four bytes.
  static uint digits(uint bytes, uint which) {
    const uint powers[5] = {1, 3, 9, 27, 81};
    uint found = 0;
#pragma unroll
    for (uint j = 0; j < 4; j++) {
      const uint shifted = (bytes >> 8 * j & 255) * powers[which] & 255;
      found |= (shifted * 3 >> 8) << 8 * j;
    }
    return found;
  }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
#pragma unroll
    for (uint i = 0; i < 8; i++) {
      uint at = 4 * i, which = part;
      if (part > 4) {
        at = part == 7 && i > 3 ? 48 : 32 + 4 * (i % 4);
        which = part == 7 ? (i > 3 ? i - 4 : 4) : 2 * (part - 5) + i / 4;
      }
      words[i] = digits(word_of_halves(block + at), which);
    }
    scales[0] = half_at(block + 52);
    offsets[0] = -scales[0];
  }
};
