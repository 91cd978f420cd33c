// Q5_K: scales (see k_scales), 32 bytes of fifth bits, 128 of nibbles.
struct Q5_K {
  enum { WEIGHTS = 256, BYTES = 176, GROUPS = 2 };

  static uint first(uint part, uint i) {
    return 64 * (part / 2) + 16 * (part % 2) + 32 * (i / 4) + 4 * (i % 4);
  }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
    const uint pair = part / 2;
    k_scales(*(const device uint4*)block, pair, scales, offsets);
    const uint4 fifth = *(const device uint4*)(block + 16 + 16 * (part % 2));
    const uint4 nibbles = *(const device uint4*)(block + 48 + 16 * part);
    const uint bits[4] = {fifth.x, fifth.y, fifth.z, fifth.w};
    const uint four[4] = {nibbles.x, nibbles.y, nibbles.z, nibbles.w};
#pragma unroll
    for (uint i = 0; i < 4; i++) {
      words[i] = (four[i] & 0x0f0f0f0f) | (bits[i] >> 2 * pair & 0x01010101) << 4;
      words[4 + i] = (four[i] >> 4 & 0x0f0f0f0f) | (bits[i] >> (2 * pair + 1) & 0x01010101) << 4;
    }
  }
};
