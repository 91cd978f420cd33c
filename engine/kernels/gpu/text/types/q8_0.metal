// Q8_0: d (half), 32 signed bytes.
struct Q8_0 {
  enum { WEIGHTS = 32, BYTES = 34, GROUPS = 1 };

  static uint first(uint part, uint i) { return 4 * i; }

  static void read(
      const device uchar* block, uint part, thread uint (&words)[8],
      thread float (&scales)[GROUPS], thread float (&offsets)[GROUPS]) {
#pragma unroll
    for (uint i = 0; i < 8; i++) words[i] = word_of_halves(block + 2 + 4 * i) ^ 0x80808080;
    scales[0] = half_at(block);
    offsets[0] = -128.0f * scales[0];
  }
};
