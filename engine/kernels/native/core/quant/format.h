// Building blocks for block types: the traits that every type defines, and helpers that read
// blocks. Uses small vectors in plain C++. The translation units of several instruction sets
// include it, so everything has internal linkage.
//
// Kernels read a row in chunks of 256 weights, as eight groups of 32. A block type is a struct that
// derives from Quantized or Floating and adds
//   ID        the type id in GGUF
//   LEVELS     the least and the largest weight, in units of its scale   (quantised types)
//   group     32 weights of a chunk as bytes, in order; see Levels
//   scales    the scales and minima of a chunk's first groups
// and optionally, for speed on one instruction set,
//   Avx512    a format from quant/avx512.h; the default is GenericAvx512
//   NIBBLES   a table of 16 weights that AMX tiles can look up
//   TILES     false: AMX tiles do not multiply this type
// docs/adding-a-block-type.md lists the steps for adding one.
#pragma once

#include <cstdint>
#include <cstring>

#include "isa/inline.h"
#include "quant/bytes.h"

namespace conifer::quant {
namespace {

// Up to 256 weights from a row. Weight i is scale[i / 16] * q[i] + min[i / 16].
struct Unpacked {
  alignas(64) int8_t q[256];
  float scale[16];
  float min[16];
};

// For types with 16 distinct weights per scale: the weights in units of the scale, and where a row
// stores the nibbles for one group of 32, low nibbles first, or for two groups.
struct Nibbles {
  const int8_t* values;
  int first, step;  // bytes; step 0: the type has no table
  bool pairs;
};

constexpr int8_t WHOLE[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
constexpr int8_t CENTRED[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

// WEIGHTS per block: 32, 64, 128 or 256. GROUP: weights per scale, 16 or 32.
// MINS: whether groups have a minimum.
template <class Block, int WEIGHTS_, int GROUP_, bool MINS_>
struct Quantized {
  static constexpr bool QUANTIZED = true;
  static constexpr int WEIGHTS = WEIGHTS_, GROUP = GROUP_, BYTES = sizeof(Block);
  static constexpr bool MINS = MINS_;
  static constexpr Nibbles NIBBLES = {nullptr, 0, 0, false};
  static constexpr bool TILES = true;  // whether bfloat16 is precise enough for the weights

  // Block i of a chunk. Blocks are packed structs of bytes and halves, so they may be at any
  // address.
  static const Block& block(const uint8_t* chunk, int i = 0) {
    return reinterpret_cast<const Block*>(chunk)[i];
  }
};

template <int BYTES_>
struct Floating {
  static constexpr bool QUANTIZED = false, TILES = false;
  static constexpr int WEIGHTS = 1, BYTES = BYTES_;

  static uint16_t read_half(const uint8_t* data) {
    uint16_t half;
    std::memcpy(&half, data, 2);
    return half;
  }
};

// The bytes of `group` are w - least if these fit seven bits, and the signed weights w otherwise.
struct Levels {
  int least, most;

  constexpr bool is_signed() const { return most - least > 127; }
  constexpr int offset() const { return is_signed() ? 0 : -least; }
  constexpr int largest() const { return is_signed() ? 128 : most - least; }  // magnitude
};

// The scales and minima of a chunk, one for every GROUP weights.
struct Scales {
  alignas(32) float scale[16];
  alignas(32) float min[16];
};

// Eight bytes with the nibbles of four, low nibbles first.
CONIFER_INLINE uint64_t spread_nibbles(uint32_t four) {
  uint64_t v = four;
  v = (v | v << 16) & 0x0000ffff0000ffff;
  v = (v | v << 8) & 0x00ff00ff00ff00ff;
  return (v | v << 4) & 0x0f0f0f0f0f0f0f0f;
}

// out[i] = factor * (byte i + shift), for eight bytes.
CONIFER_INLINE void put_steps(float* out, uint64_t eight, float factor, float shift = 0) {
#if defined(__AVX2__)
  const __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(eight)));
  __m256 steps = _mm256_cvtepi32_ps(wide);
  if (shift != 0) steps = _mm256_add_ps(steps, _mm256_set1_ps(shift));
  _mm256_storeu_ps(out, _mm256_mul_ps(steps, _mm256_set1_ps(factor)));
#else
  for (int i = 0; i < 8; ++i) out[i] = factor * (static_cast<float>(eight >> 8 * i & 255) + shift);
#endif
}

CONIFER_INLINE void put_all(float* out, int n, float value) {
  for (int i = 0; i < n; ++i) out[i] = value;
}

// Read n halves, up to eight, that are `stride` bytes apart. May write zeros after them, up to
// out[7].
CONIFER_INLINE void put_halves(float* out, const uint8_t* halves, int stride, int n) {
#if defined(__AVX2__)
  const auto at = [&](int i) { return read_integer<uint16_t>(halves + i * stride); };
  __m128i eight;
  if (n == 8) {
    const auto lane = [&](int i) { return static_cast<int16_t>(at(i)); };
    eight = _mm_setr_epi16(lane(0), lane(1), lane(2), lane(3), lane(4), lane(5), lane(6), lane(7));
  } else {  // in integers, because a vector that is loaded after narrower stores waits for them
    uint64_t low = 0, high = 0;
    for (int i = 0; i < n; ++i) (i < 4 ? low : high) |= static_cast<uint64_t>(at(i)) << i % 4 * 16;
    eight = _mm_set_epi64x(static_cast<int64_t>(high), static_cast<int64_t>(low));
  }
  _mm256_storeu_ps(out, _mm256_cvtph_ps(eight));
#else
  for (int i = 0; i < n; ++i) out[i] = f16_to_float(read_integer<uint16_t>(halves + i * stride));
#endif
}

// Unpack the 8 six-bit scales and 8 six-bit minima that Q4_K and Q5_K pack in 12 bytes.
inline void k_scales(const uint8_t* packed, uint64_t& scales, uint64_t& minima) {
  uint32_t first, second, rest;
  std::memcpy(&first, packed, 4);
  std::memcpy(&second, packed + 4, 4);
  std::memcpy(&rest, packed + 8, 4);
  const uint32_t scales_high = (rest & 0x0f0f0f0f) | (first >> 2 & 0x30303030);
  const uint32_t minima_high = (rest >> 4 & 0x0f0f0f0f) | (second >> 2 & 0x30303030);
  scales = (first & 0x3f3f3f3f) | static_cast<uint64_t>(scales_high) << 32;
  minima = (second & 0x3f3f3f3f) | static_cast<uint64_t>(minima_high) << 32;
}

CONIFER_INLINE void put_k_scales(Scales& out, const uint8_t* packed, float d, float dmin) {
  uint64_t scales, minima;
  k_scales(packed, scales, minima);
  put_steps(out.scale, scales, d);
  put_steps(out.min, minima, -dmin);
}

// Unpack `weights` weights (at most 256, whole blocks) from `data`. The rest of the chunk is zero.
template <class T>
inline void unpack_chunk(const uint8_t* data, int weights, Unpacked& out) {
  const int groups = weights / 32;
  Scales scales{};
  T::scales(data, groups, scales);
  for (int i = 0; i < 16; ++i) {
    const int group = T::GROUP == 16 ? i : i / 2;
    out.scale[i] = scales.scale[group];
    out.min[i] = T::MINS ? scales.min[group] : 0;
  }
  const Bytes32 offset = fill32(T::LEVELS.offset());
  for (int g = 0; g < groups; ++g) store32(out.q + 32 * g, T::group(data, g) - offset);
  std::memset(out.q + weights, 0, static_cast<size_t>(256 - weights));
}

}  // namespace
}  // namespace conifer::quant
