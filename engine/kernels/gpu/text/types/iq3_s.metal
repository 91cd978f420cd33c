// IQ3_S: d (half), low bytes of 64 indices of points of four weights, their ninth bits (8 bytes), 32
// bytes of signs, 8 scales of 4 bits.
struct IQ3_S {
  enum { WEIGHTS = 256, BYTES = 110, GROUPS = 1 };

  static uint first(uint part, uint i) { return 32 * part + 4 * i; }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
    const uint ninth = block[66 + part];
#pragma unroll
    for (uint i = 0; i < 8; i++) {
      const uint index = uint(block[2 + 8 * part + i]) | (ninth >> i & 1) << 8;
      const uint signs = uint(block[74 + 4 * part + i / 2]) >> 4 * (i % 2);
      words[i] = with_signs(2 * spread_threes(points[index]) + 0x01010101, signs);
    }
    const uint scale = uint(block[106 + part / 2]) >> 4 * (part % 2) & 15;
    scales[0] = half_at(block) * float(1 + 2 * scale);
    offsets[0] = -128.0f * scales[0];
  }
};
