// TQ1_0: 256 weights of -1, 0 or 1, five to a byte, with one scale.
#pragma once

#include "quant/avx512.h"
#include "quant/format.h"

namespace conifer::quant {
namespace {

#pragma pack(push, 1)
struct BlockTQ1_0 {
  uint8_t q[48];    // five weights each: 32 bytes for 160 weights, then 16 for 80
  uint8_t last[4];  // four weights each
  uint16_t d;
};
#pragma pack(pop)

struct TQ1_0 : Quantized<BlockTQ1_0, 256, 32, false> {
  static constexpr int32_t ID = 34;

  static constexpr Levels LEVELS = {-1, 1};

  // A byte is the fraction 0.abcde in base 3, times 256. Its first digit is a; tripling it, modulo
  // 256, moves the next digit there.
  static CONIFER_INLINE Bytes32 digits(Bytes32 v) {
    return fill32(0) - at_least(v, 86) - at_least(v, 171);
  }

  template <class Vector>
  static CONIFER_INLINE Vector tripled(Vector v, int times) {
    for (int i = 0; i < times; ++i) v = v + v + v;
    return v;
  }

  // Groups 5 to 7: five digits of 16 bytes, then four digits of four bytes.
  static CONIFER_INLINE Bytes32 last_digits(const BlockTQ1_0& b, int g) {
    const int times = 2 * (g - 5);
    const Bytes first = tripled(load(b.q + 32), times);
    if (g < 7) return digits(join(first, tripled(first, 1)));
    typedef uint32_t Quads __attribute__((vector_size(16)));
    const Bytes once = (Bytes)(Quads{} + read_integer<uint32_t>(b.last));
    const Quads thrice = (Quads)tripled(once, 1), ninth = (Quads)tripled(once, 2);
    const Quads last = (Quads)tripled(once, 3);
    return digits(join(first, (Bytes)Quads{((Quads)once)[0], thrice[0], ninth[0], last[0]}));
  }

  static CONIFER_INLINE Bytes32 group(const uint8_t* chunk, int g) {
    const BlockTQ1_0& b = block(chunk);
    return g < 5 ? digits(tripled(load32(b.q), g)) : last_digits(b, g);
  }

  static CONIFER_INLINE void scales(const uint8_t* chunk, int, Scales& out) {
    put_all(out.scale, 8, f16_to_float(block(chunk).d));
  }
};

}  // namespace
}  // namespace conifer::quant
