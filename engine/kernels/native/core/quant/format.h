// Building blocks for block types: the traits that every type defines, and helpers that unpack
// blocks to one common form. Uses small vectors in plain C++. The translation units of several
// instruction sets include it, so everything has internal linkage.
//
// A block type is a struct that derives from Quantized or Floating and adds
//   ID        the type id in GGUF
//   unpack    converts one block to an Unpacked chunk (quantised types)
// and optionally, for speed on one instruction set,
//   Avx512    a format from quant/avx512.h; the default is GenericAvx512
//   NIBBLES   a table of 16 weights that AMX tiles can look up
//   TILES     false: AMX tiles do not multiply this type
// docs/adding-a-block-type.md lists the steps for adding one.
#pragma once

#include <cstdint>
#include <cstring>

#include "quant/half.h"

#if defined(__SSSE3__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

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

  // Blocks are packed structs of bytes and halves, so they may be at any address.
  static const Block& read(const uint8_t* data) { return *reinterpret_cast<const Block*>(data); }
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

// Set the scale and minimum for weights 32 * index to 32 * index + 31 in a chunk.
inline void put_scale(Unpacked& out, int index, float scale, float min = 0) {
  out.scale[2 * index] = out.scale[2 * index + 1] = scale;
  out.min[2 * index] = out.min[2 * index + 1] = min;
}

// 16 bytes at a time, in vector types that GCC and Clang support on every machine.
typedef uint8_t Bytes __attribute__((vector_size(16)));

inline Bytes load(const void* p) {
  Bytes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(int8_t* q, Bytes v) { std::memcpy(q, &v, sizeof v); }

inline Bytes fill(uint8_t byte) { return Bytes{} + byte; }

// Extract `bits` (1, 2 or 4) bits from each byte, starting at bit `shift`.
inline Bytes field(Bytes v, int shift, int bits) {
  return (v >> fill(static_cast<uint8_t>(shift))) & fill(static_cast<uint8_t>((1 << bits) - 1));
}

inline void put_nibbles(int8_t* q, const uint8_t* packed, int n, int offset) {
  for (int i = 0; i < n; i += 16) {
    const Bytes v = load(packed + i);
    store(q + i, field(v, 0, 4) - fill(static_cast<uint8_t>(offset)));
    store(q + n + i, field(v, 4, 4) - fill(static_cast<uint8_t>(offset)));
  }
}

// Look up values[index] for 16 indices below 16.
inline Bytes look_up(Bytes values, Bytes index) {
#if defined(__SSSE3__)
  return (Bytes)_mm_shuffle_epi8((__m128i)values, (__m128i)index);
#elif defined(__aarch64__)
  return (Bytes)vqtbl1q_u8((uint8x16_t)values, (uint8x16_t)index);
#else
  Bytes out{};
  for (int i = 0; i < 16; ++i) out[i] = values[index[i]];
  return out;
#endif
}

inline void put_codes(int8_t* q, const uint8_t* packed, const int8_t* values) {
  const Bytes v = load(packed), codes = load(values);
  store(q, look_up(codes, field(v, 0, 4)));
  store(q + 16, look_up(codes, field(v, 4, 4)));
}

// Return 255 for each bit set in the two bytes, and 0 for the rest.
inline Bytes set_bits(const uint8_t* two) {
  constexpr uint64_t EACH = 0x0101010101010101;
  typedef uint64_t Words __attribute__((vector_size(16)));
  const Bytes spread = (Bytes)Words{two[0] * EACH, two[1] * EACH};
  const Bytes bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  return (Bytes)((spread & bit) != 0);
}

inline Bytes fifth_bits(const uint8_t* two) { return set_bits(two) & fill(16); }

inline void put_fives(int8_t* q, const uint8_t* packed, const uint8_t* high, int offset) {
  const Bytes v = load(packed);
  store(q, (field(v, 0, 4) | fifth_bits(high)) - fill(static_cast<uint8_t>(offset)));
  store(q + 16, (field(v, 4, 4) | fifth_bits(high + 2)) - fill(static_cast<uint8_t>(offset)));
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

inline void put_k_scales(Unpacked& out, const uint8_t* packed, float d, float dmin) {
  uint64_t scales, minima;
  k_scales(packed, scales, minima);
  for (int i = 0; i < 8; ++i)
    put_scale(out, i, d * static_cast<float>(scales >> 8 * i & 63),
              -dmin * static_cast<float>(minima >> 8 * i & 63));
}

// Unpack `weights` weights (at most 256, whole blocks) from `data`. The rest of the chunk is zero.
template <class T>
inline void unpack_chunk(const uint8_t* data, int weights, Unpacked& out) {
  if constexpr (T::WEIGHTS == 256) {
    T::unpack(data, 0, out);
  } else {
    const int blocks = weights / T::WEIGHTS;
    for (int i = 0; i < blocks; ++i) T::unpack(data + i * T::BYTES, i, out);
    for (int i = weights / 32; i < 8; ++i) put_scale(out, i, 0);
    std::memset(out.q + weights, 0, static_cast<size_t>(256 - weights));
  }
}

}  // namespace
}  // namespace conifer::quant
