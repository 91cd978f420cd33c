// Helpers for the block types. A type is a struct that tells how lanes share its blocks:
//   WEIGHTS, BYTES   of a block
//   GROUPS           scales of a share: 32 weights, as eight words of four unsigned bytes
//   first(part, i)   where in the block the four weights of word i of share `part` begin
//   read(...)        the words, and for each group its scale and offset:
//                    weight = scale * byte + offset
inline uint word_of_bytes(const device uchar* at) {
  return uint(at[0]) | uint(at[1]) << 8 | uint(at[2]) << 16 | uint(at[3]) << 24;
}
inline uint word_of_halves(const device uchar* at) {  // `at` is even
  const device ushort* halves = (const device ushort*)at;
  return uint(halves[0]) | uint(halves[1]) << 16;
}
inline uint half_word(const device uchar* at) { return *(const device ushort*)at; }
inline float half_at(const device uchar* at) {
  return float(as_type<half>(*(const device ushort*)at));
}

// Spread small numbers over the bytes of a word, the lowest first.
inline uint spread_bits(uint bits) { return (bits & 15) * 0x00204081 & 0x01010101; }
inline uint spread_pairs(uint pairs) {
  const uint two = (pairs & 255 | (pairs & 255) << 12) & 0x000f000f;
  return (two | two << 6) & 0x03030303;
}
inline uint spread_threes(uint threes) {
  const uint two = (threes & 4095 | (threes & 4095) << 10) & 0x003f003f;
  return (two | two << 5) & 0x07070707;
}

// Four bytes below 128 with their signs, as bytes around 128.
inline uint with_signs(uint bytes, uint signs) {
  const uint negative = spread_bits(signs);
  return (bytes ^ negative * 127) + negative + ((negative ^ 0x01010101) << 7);
}
// Seven signs, and the eighth that makes the number of negative weights even.
inline uint eight_signs(uint seven) {
  const uint folded = (seven ^ seven >> 4) & 15;
  return seven | (0x6996 >> folded & 1) << 7;
}
// The magnitudes 8, 25 and 43 of IQ2 for the digits 0, 1 and 2.
inline uint iq2_levels(uint digits) { return 0x08080808 + 17 * digits + (digits >> 1 & 0x01010101); }
