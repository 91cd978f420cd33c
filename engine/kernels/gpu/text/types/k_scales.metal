// Q4_K and Q5_K begin with d and dmin (half), then 8 scales and 8 minima of 6 bits in 12 bytes.
// Two consecutive groups of 32 weights, number `pair`, share a lane's bytes.
inline void k_scales(
    uint4 head, uint pair, thread float (&scales)[2], thread float (&offsets)[2]) {
  const float d = float(as_type<half>(ushort(head.x & 0xffff)));
  const float dmin = float(as_type<half>(ushort(head.x >> 16)));
  const uint at = 16 * (pair % 2);
  uint scale = head.y >> at, minimum = head.z >> at;
  if (pair < 2) {
    scale &= 0x3f3f;
    minimum &= 0x3f3f;
  } else {
    const uint low = head.w >> at;
    scale = (low & 0x0f0f) | (scale & 0xc0c0) >> 2;
    minimum = (low & 0xf0f0) >> 4 | (minimum & 0xc0c0) >> 2;
  }
  scales[0] = d * float(scale & 0xff);
  scales[1] = d * float(scale >> 8);
  offsets[0] = -dmin * float(minimum & 0xff);
  offsets[1] = -dmin * float(minimum >> 8);
}
