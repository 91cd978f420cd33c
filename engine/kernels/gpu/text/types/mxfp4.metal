// MXFP4: a power of two (1 byte), 16 bytes of indices into the codebook, which is doubled and
// moved by 12.
struct MXFP4 {
  enum { WEIGHTS = 32, BYTES = 17, GROUPS = 1 };

  static uint first(uint part, uint i) { return 4 * i; }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
#pragma unroll
    for (uint i = 0; i < 4; i++) {
      const uint nibbles = word_of_bytes(block + 1 + 4 * i);
      words[i] = codes(nibbles);
      words[4 + i] = codes(nibbles >> 4);
    }
    const uint exponent = block[0];  // 2^(exponent - 128), of which the two smallest are subnormal
    scales[0] = as_type<float>(exponent > 1 ? (exponent - 1) << 23 : 0x00200000u << exponent);
    offsets[0] = -12.0f * scales[0];
  }
};
