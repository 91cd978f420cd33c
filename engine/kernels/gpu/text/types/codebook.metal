// Bytes for four of the codebook's indices, which are the low nibbles of a word.
inline uint codes(uint nibbles) {
  return uint(codebook[nibbles & 15]) | uint(codebook[nibbles >> 8 & 15]) << 8 |
         uint(codebook[nibbles >> 16 & 15]) << 16 | uint(codebook[nibbles >> 24 & 15]) << 24;
}
