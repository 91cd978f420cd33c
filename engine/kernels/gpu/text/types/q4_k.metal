// Q4_K: scales (see k_scales), 128 bytes of nibbles.
struct Q4_K {
  enum { WEIGHTS = 256, BYTES = 144, GROUPS = 2 };

  static uint first(uint part, uint i) {
    return 64 * (part / 2) + 16 * (part % 2) + 32 * (i / 4) + 4 * (i % 4);
  }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
    k_scales(*(const device uint4*)block, part / 2, scales, offsets);
    const uint4 nibbles = *(const device uint4*)(block + 16 + 16 * part);
    const uint four[4] = {nibbles.x, nibbles.y, nibbles.z, nibbles.w};
#pragma unroll
    for (uint i = 0; i < 4; i++) {
      words[i] = four[i] & 0x0f0f0f0f;
      words[4 + i] = four[i] >> 4 & 0x0f0f0f0f;
    }
  }
};
