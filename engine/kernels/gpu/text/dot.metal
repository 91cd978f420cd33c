// Adds to sums the products of R rows and one vector, by one simdgroup: a lane to a share of 32
// weights, and x read once for all rows. A byte stays where it is in its word: byte j weighs 256^j
// as a float, and x is divided by that once. Rows past the last repeat it.
template <typename Type, int R, typename T>
inline void dot_rows(
    const device uchar* rows, ulong row_bytes, uint last_row, const device T* x, uint shares,
    uint lane, float factor, thread float (&sums)[R]) {
  enum { WORDS = 8, SHARES = Type::WEIGHTS / 32, EACH = WORDS / Type::GROUPS };
  for (uint share = lane; share < shares; share += SIMD) {
    const uint block = share / SHARES, part = share % SHARES;
    float scaled[4 * WORDS], totals[Type::GROUPS];
#pragma unroll
    for (uint g = 0; g < Type::GROUPS; g++) totals[g] = 0.0f;
#pragma unroll
    for (uint i = 0; i < WORDS; i++) {
      const device T* four = x + Type::WEIGHTS * block + Type::first(part, i);
      const float x0 = float(four[0]), x1 = float(four[1]), x2 = float(four[2]), x3 = float(four[3]);
      totals[i / EACH] += (x0 + x1) + (x2 + x3);
      scaled[4 * i] = x0;
      scaled[4 * i + 1] = x1 * 0.00390625f;
      scaled[4 * i + 2] = x2 * 1.52587890625e-5f;
      scaled[4 * i + 3] = x3 * 5.9604644775390625e-8f;
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
      const uint row = uint(r) < last_row ? uint(r) : last_row;
      uint words[WORDS];
      float scales[Type::GROUPS], offsets[Type::GROUPS];
      Type::read(rows + row * row_bytes + ulong(block) * Type::BYTES, part, words, scales, offsets);
      float sum = 0.0f;
#pragma unroll
      for (uint g = 0; g < Type::GROUPS; g++) {
        float dot = 0.0f;
#pragma unroll
        for (uint i = g * EACH; i < (g + 1) * EACH; i++) {
          dot += scaled[4 * i] * float(words[i] & 0xff);
          dot += scaled[4 * i + 1] * float(words[i] & 0xff00);
          dot += scaled[4 * i + 2] * float(words[i] & 0xff0000);
          dot += scaled[4 * i + 3] * float(words[i] & 0xff000000);
        }
        sum += scales[g] * dot + offsets[g] * totals[g];
      }
      sums[r] += factor * sum;
    }
  }
}
