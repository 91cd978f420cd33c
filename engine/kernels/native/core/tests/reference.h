// A reference decoder for each block type, one weight at a time in double, and random blocks.
//
// Every type in CONIFER_BLOCK_TYPES needs a Reference here. REFERENCES instantiates one for each
// type, so a missing Reference is a compile error.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "quant/types.h"

namespace conifer::tests {
namespace {

using quant::Type;

using Random = std::mt19937_64;

inline float normal(Random& random) { return std::normal_distribution<float>()(random); }

inline double half_at(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, 2);
  return quant::f16_to_float(half);
}

inline void put_half(uint8_t* p, float value) {
  const uint16_t half = quant::float_to_f16(value);
  std::memcpy(p, &half, 2);
}

// Zero, subnormal, largest, infinite and NaN scales.
constexpr uint16_t EXTREME_HALVES[] = {0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x7bff,
                                       0xfbff, 0x7c00, 0xfc00, 0x7c01, 0x7e00, 0xfe00};
constexpr int EXTREMES = 2 * 12;

// randomise: replace the scales in a block of random bits with numbers of a common size.
// exaggerate: replace them with extreme number `which`, 0..EXTREMES - 1, of the type's scales.
// decode: return a block's weights.
template <Type>
struct Reference;

template <>
struct Reference<Type::F32> {
  static void exaggerate(uint8_t* block, int which) {
    const float value = quant::f16_to_float(EXTREME_HALVES[which % 12]) * (which < 12 ? 1 : 1e33f);
    std::memcpy(block, &value, 4);
  }
  static void randomise(uint8_t* block, Random& random) {
    const float value = normal(random);
    std::memcpy(block, &value, 4);
  }
  static void decode(const uint8_t* block, double* out) {
    float value;
    std::memcpy(&value, block, 4);
    out[0] = value;
  }
};

template <>
struct Reference<Type::F16> {
  static void randomise(uint8_t* block, Random& random) { put_half(block, normal(random)); }
  static void exaggerate(uint8_t* block, int which) {
    std::memcpy(block, EXTREME_HALVES + which % 12, 2);
  }
  static void decode(const uint8_t* block, double* out) { out[0] = half_at(block); }
};

template <>
struct Reference<Type::BF16> {
  static void randomise(uint8_t* block, Random& random) {
    const uint16_t upper = static_cast<uint16_t>(quant::float_bits(normal(random)) >> 16);
    std::memcpy(block, &upper, 2);
  }
  static void exaggerate(uint8_t* block, int which) {
    constexpr uint16_t VALUES[] = {0, 0x8000, 1, 0x0080, 0x7f7f, 0xff7f, 0x7f80, 0xff80, 0x7fc0};
    std::memcpy(block, VALUES + which % 9, 2);
  }
  static void decode(const uint8_t* block, double* out) {
    out[0] = quant::bits_float(uint32_t{block[0]} << 16 | uint32_t{block[1]} << 24);
  }
};

// Types with half-precision scales at bytes AT of a block.
template <int... AT>
struct Halves {
  static void randomise(uint8_t* block, Random& random) {
    (put_half(block + AT, 0.1f * normal(random)), ...);
  }
  // The last of them, or all.
  static void exaggerate(uint8_t* block, int which) {
    constexpr int OFFSETS[] = {AT...}, COUNT = sizeof...(AT);
    for (int i = which < 12 ? 0 : COUNT - 1; i < COUNT; ++i)
      std::memcpy(block + OFFSETS[i], EXTREME_HALVES + which % 12, 2);
  }
};

// Four-bit weight i of 32.
inline int nibble(const uint8_t* q, int i) { return q[i % 16] >> 4 * (i / 16) & 15; }

inline int bit(const uint8_t* bits, int i) { return bits[i / 8] >> i % 8 & 1; }

template <>
struct Reference<Type::Q4_0> : Halves<0> {
  static void decode(const uint8_t* block, double* out) {
    for (int i = 0; i < 32; ++i) out[i] = half_at(block) * (nibble(block + 2, i) - 8);
  }
};

template <>
struct Reference<Type::Q4_1> : Halves<0, 2> {
  static void decode(const uint8_t* block, double* out) {
    for (int i = 0; i < 32; ++i)
      out[i] = half_at(block) * nibble(block + 4, i) + half_at(block + 2);
  }
};

template <>
struct Reference<Type::Q5_0> : Halves<0> {
  static void decode(const uint8_t* block, double* out) {
    for (int i = 0; i < 32; ++i)
      out[i] = half_at(block) * (nibble(block + 6, i) + 16 * bit(block + 2, i) - 16);
  }
};

template <>
struct Reference<Type::Q5_1> : Halves<0, 2> {
  static void decode(const uint8_t* block, double* out) {
    for (int i = 0; i < 32; ++i)
      out[i] =
          half_at(block) * (nibble(block + 8, i) + 16 * bit(block + 4, i)) + half_at(block + 2);
  }
};

template <>
struct Reference<Type::Q8_0> : Halves<0> {
  static void decode(const uint8_t* block, double* out) {
    for (int i = 0; i < 32; ++i) out[i] = half_at(block) * static_cast<int8_t>(block[2 + i]);
  }
};

// Two-bit weight i of 256.
inline int pair(const uint8_t* q, int i) {
  return q[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
}

template <>
struct Reference<Type::Q2_K> : Halves<80, 82> {
  static void decode(const uint8_t* block, double* out) {
    for (int i = 0; i < 256; ++i)
      out[i] = half_at(block + 80) * (block[i / 16] & 15) * pair(block + 16, i) -
               half_at(block + 82) * (block[i / 16] >> 4);
  }
};

template <>
struct Reference<Type::Q3_K> : Halves<108> {
  static void decode(const uint8_t* block, double* out) {
    const uint8_t* packed = block + 96;
    for (int i = 0; i < 256; ++i) {
      const int group = i / 16;
      const int low = packed[group % 8] >> 4 * (group / 8) & 15;
      const int high = packed[8 + group % 4] >> 2 * (group / 4) & 3;
      const int third = block[i % 32] >> i / 32 & 1;
      out[i] =
          half_at(block + 108) * (low + 16 * high - 32) * (pair(block + 32, i) + 4 * third - 4);
    }
  }
};

// Six-bit scale (which = 0) or minimum (which = 1) for group 0..7, packed in 12 bytes.
inline int k_scale(const uint8_t* packed, int group, int which) {
  if (group < 4) return packed[group + 4 * which] & 63;
  const int low = packed[group + 4] >> 4 * which & 15;
  return low + 16 * (packed[group - 4 + 4 * which] >> 6);
}

// Four-bit weight i of 256: the low nibbles of 32 bytes, then the high nibbles.
inline int k_nibble(const uint8_t* q, int i) {
  return q[i / 64 * 32 + i % 32] >> i % 64 / 32 * 4 & 15;
}

template <>
struct Reference<Type::Q4_K> : Halves<0, 2> {
  static void decode(const uint8_t* block, double* out) {
    for (int i = 0; i < 256; ++i)
      out[i] = half_at(block) * k_scale(block + 4, i / 32, 0) * k_nibble(block + 16, i) -
               half_at(block + 2) * k_scale(block + 4, i / 32, 1);
  }
};

template <>
struct Reference<Type::Q5_K> : Halves<0, 2> {
  static void decode(const uint8_t* block, double* out) {
    for (int i = 0; i < 256; ++i) {
      const int q = k_nibble(block + 48, i) + 16 * (block[16 + i % 32] >> i / 32 & 1);
      out[i] = half_at(block) * k_scale(block + 4, i / 32, 0) * q -
               half_at(block + 2) * k_scale(block + 4, i / 32, 1);
    }
  }
};

template <>
struct Reference<Type::Q6_K> : Halves<208> {
  static void decode(const uint8_t* block, double* out) {
    for (int i = 0; i < 256; ++i) {
      const int part = i % 128 / 32;
      const int low = block[i / 128 * 64 + part % 2 * 32 + i % 32] >> 4 * (part / 2) & 15;
      out[i] = half_at(block + 208) * static_cast<int8_t>(block[192 + i / 16]) *
               (low + 16 * pair(block + 128, i) - 32);
    }
  }
};

constexpr int IQ4_CODES[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                               1,    13,   25,  38,  53,  69,  89,  113};

template <>
struct Reference<Type::IQ4_NL> : Halves<0> {
  static void decode(const uint8_t* block, double* out) {
    for (int i = 0; i < 32; ++i) out[i] = half_at(block) * IQ4_CODES[nibble(block + 2, i)];
  }
};

template <>
struct Reference<Type::IQ4_XS> : Halves<0> {
  static void decode(const uint8_t* block, double* out) {
    for (int i = 0; i < 256; ++i) {
      const int group = i / 32;
      const int low = block[4 + group / 2] >> 4 * (group % 2) & 15;
      const int high = (block[2] | block[3] << 8) >> 2 * group & 3;
      out[i] = half_at(block) * (low + 16 * high - 32) *
               IQ4_CODES[nibble(block + 8 + 16 * group, i % 32)];
    }
  }
};

template <>
struct Reference<Type::MXFP4> {
  static void randomise(uint8_t* block, Random& random) {
    block[0] = static_cast<uint8_t>(122 + random() % 11);
  }
  static void exaggerate(uint8_t* block, int which) {
    constexpr uint8_t VALUES[] = {0, 1, 2, 3, 252, 253, 254, 255};
    block[0] = VALUES[which % 8];
  }
  static void decode(const uint8_t* block, double* out) {
    constexpr double CODES[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    for (int i = 0; i < 32; ++i) {
      const int code = nibble(block + 1, i);
      out[i] = std::ldexp(code & 8 ? -CODES[code & 7] : CODES[code], block[0] - 127);
    }
  }
};

// Point `rank` of a grid of WEIGHTS weights with LEVELS levels: the digits of its number.
template <int WEIGHTS, int LEVELS, size_t WORDS>
void grid_point(const uint64_t (&points)[WORDS], int rank, int (&digits)[WEIGHTS]) {
  int number = 0;
  for (;; ++number)
    if (points[number / 64] >> number % 64 & 1 && rank-- == 0) break;
  for (int& digit : digits) {
    digit = number % LEVELS;
    number /= LEVELS;
  }
}

constexpr int THREE_LEVELS[] = {8, 25, 43};
constexpr int EIGHT_LEVELS[] = {4, 12, 20, 28, 36, 44, 52, 62};

// The sign of weight i of 8, from 7 bits: the eighth makes the number of negative weights even.
inline int seven_signs(unsigned bits, int i) {
  int negative = 0;
  for (int b = 0; b < 7; ++b) negative += bits >> b & 1;
  return (i < 7 ? bits >> i & 1 : negative % 2) ? -1 : 1;
}

template <class T>
T at(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

template <>
struct Reference<Type::IQ2_XXS> : Halves<0> {
  static void decode(const uint8_t* block, double* out) {
    for (int p = 0; p < 32; ++p) {
      const uint8_t* group = block + 2 + 8 * (p / 4);
      const uint32_t word = at<uint32_t>(group + 4);
      int digits[8];
      grid_point<8, 3>(quant::IQ2_XXS_POINTS, group[p % 4], digits);
      for (int i = 0; i < 8; ++i)
        out[8 * p + i] = half_at(block) * (0.5 + (word >> 28)) / 4 * THREE_LEVELS[digits[i]] *
                         seven_signs(word >> 7 * (p % 4) & 127, i);
    }
  }
};

template <>
struct Reference<Type::IQ2_XS> : Halves<0> {
  static void decode(const uint8_t* block, double* out) {
    for (int p = 0; p < 32; ++p) {
      const unsigned word = at<uint16_t>(block + 2 + 2 * p);
      const int scale = block[66 + p / 4] >> 4 * (p / 2 % 2) & 15;
      int digits[8];
      grid_point<8, 3>(quant::IQ2_XS_POINTS, word & 511, digits);
      for (int i = 0; i < 8; ++i)
        out[8 * p + i] = half_at(block) * (0.5 + scale) / 4 * THREE_LEVELS[digits[i]] *
                         seven_signs(word >> 9, i);
    }
  }
};

template <>
struct Reference<Type::IQ2_S> : Halves<0> {
  static void decode(const uint8_t* block, double* out) {
    for (int p = 0; p < 32; ++p) {
      const int rank = block[2 + p] + 256 * (block[66 + p / 4] >> 2 * (p % 4) & 3);
      const int scale = block[74 + p / 4] >> 4 * (p / 2 % 2) & 15;
      int digits[8];
      grid_point<8, 3>(quant::IQ2_S_POINTS, rank, digits);
      for (int i = 0; i < 8; ++i)
        out[8 * p + i] = half_at(block) * (0.5 + scale) / 4 * THREE_LEVELS[digits[i]] *
                         (block[34 + p] >> i & 1 ? -1 : 1);
    }
  }
};

template <>
struct Reference<Type::IQ3_XXS> : Halves<0> {
  static void decode(const uint8_t* block, double* out) {
    for (int p = 0; p < 64; ++p) {
      const uint32_t word = at<uint32_t>(block + 66 + 4 * (p / 8));
      int digits[4];
      grid_point<4, 8>(quant::IQ3_XXS_POINTS, block[2 + p], digits);
      for (int i = 0; i < 4; ++i)
        out[4 * p + i] = half_at(block) * (0.5 + (word >> 28)) / 2 * EIGHT_LEVELS[digits[i]] *
                         seven_signs(word >> 7 * (p / 2 % 4) & 127, 4 * (p % 2) + i);
    }
  }
};

template <>
struct Reference<Type::IQ3_S> : Halves<0> {
  static void decode(const uint8_t* block, double* out) {
    for (int p = 0; p < 64; ++p) {
      const int scale = block[106 + p / 16] >> 4 * (p / 8 % 2) & 15;
      int digits[4];
      grid_point<4, 8>(quant::IQ3_S_POINTS, block[2 + p] + 256 * bit(block + 66, p), digits);
      for (int i = 0; i < 4; ++i)
        out[4 * p + i] = half_at(block) * (1 + 2 * scale) * (2 * digits[i] + 1) *
                         (bit(block + 74, 4 * p + i) ? -1 : 1);
    }
  }
};

template <>
struct Reference<Type::IQ1_S> : Halves<0> {
  static void decode(const uint8_t* block, double* out) {
    for (int p = 0; p < 32; ++p) {
      const int word = at<uint16_t>(block + 34 + 2 * (p / 4));
      int digits[8];
      grid_point<8, 3>(quant::IQ1_POINTS, block[2 + p] + 256 * (word >> 3 * (p % 4) & 7), digits);
      for (int i = 0; i < 8; ++i)
        out[8 * p + i] = half_at(block) * (2 * (word >> 12 & 7) + 1) *
                         (digits[i] - 1 + (word & 0x8000 ? -0.125 : 0.125));
    }
  }
};

template <>
struct Reference<Type::IQ1_M> {
  static void randomise(uint8_t* block, Random& random) {
    uint8_t half[2];
    put_half(half, 0.1f * normal(random));
    put_scale(block, half);
  }
  static void exaggerate(uint8_t* block, int which) {
    uint8_t half[2];
    std::memcpy(half, EXTREME_HALVES + which % 12, 2);
    put_scale(block, half);
  }
  static void put_scale(uint8_t* block, const uint8_t* half) {
    const int nibbles[4] = {half[0] & 15, half[0] >> 4, half[1] & 15, half[1] >> 4};
    for (int i = 0; i < 4; ++i)
      block[49 + 2 * i] = static_cast<uint8_t>((block[49 + 2 * i] & 15) | nibbles[i] << 4);
  }
  static void decode(const uint8_t* block, double* out) {
    uint8_t half[2] = {static_cast<uint8_t>(block[49] >> 4 | (block[51] & 0xf0)),
                       static_cast<uint8_t>(block[53] >> 4 | (block[55] & 0xf0))};
    for (int p = 0; p < 32; ++p) {
      const int nibble = block[32 + p / 2] >> 4 * (p % 2) & 15, group = p / 2;
      const int scale = at<uint16_t>(block + 48 + 2 * (group / 4)) >> 3 * (group % 4) & 7;
      int digits[8];
      grid_point<8, 3>(quant::IQ1_POINTS, block[p] + 256 * (nibble & 7), digits);
      for (int i = 0; i < 8; ++i)
        out[8 * p + i] =
            half_at(half) * (2 * scale + 1) * (digits[i] - 1 + (nibble & 8 ? -0.125 : 0.125));
    }
  }
};

template <>
struct Reference<Type::TQ1_0> : Halves<52> {
  static void decode(const uint8_t* block, double* out) {
    for (int i = 0; i < 256; ++i) {
      const int rest = i < 160 ? i : i < 240 ? i - 160 : i - 240;
      const int width = i < 160 ? 32 : i < 240 ? 16 : 4, start = i < 160 ? 0 : i < 240 ? 32 : 48;
      unsigned byte = block[start + rest % width];
      for (int shift = 0; shift < rest / width; ++shift) byte = byte * 3 % 256;
      out[i] = half_at(block + 52) * (static_cast<int>(byte * 3 / 256) - 1);
    }
  }
};

template <>
struct Reference<Type::TQ2_0> : Halves<64> {
  static void decode(const uint8_t* block, double* out) {
    for (int i = 0; i < 256; ++i) out[i] = half_at(block + 64) * (pair(block, i) - 1);
  }
};

template <>
struct Reference<Type::NVFP4> {
  static void randomise(uint8_t* block, Random& random) {
    for (int i = 0; i < 4; ++i) block[i] = static_cast<uint8_t>(random() % 80);
  }
  static void exaggerate(uint8_t* block, int which) {
    constexpr uint8_t VALUES[] = {0, 1, 7, 8, 0x77, 0x7e, 0x7f, 0x80, 0x81, 0xfe, 0xff};
    for (int i = 0; i < 4; ++i) block[i] = VALUES[(which + 5 * i) % 11];
  }
  static void decode(const uint8_t* block, double* out) {
    constexpr double CODES[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    for (int i = 0; i < 64; ++i) {
      const int e = block[i / 16], exponent = e >> 3 & 15, mantissa = e & 7;
      const double scale = e == 127        ? 0
                           : exponent == 0 ? std::ldexp(mantissa, -9)
                                           : std::ldexp(8 + mantissa, exponent - 10);
      const int code = block[4 + i / 16 * 8 + i % 8] >> 4 * (i / 8 % 2) & 15;
      out[i] = scale * (code & 8 ? -CODES[code & 7] : CODES[code]);
    }
  }
};

template <>
struct Reference<Type::Q1_0> : Halves<0> {
  static void decode(const uint8_t* block, double* out) {
    for (int i = 0; i < 128; ++i) out[i] = half_at(block) * (bit(block + 2, i) ? 1 : -1);
  }
};

template <>
struct Reference<Type::Q2_0> : Halves<0> {
  static void decode(const uint8_t* block, double* out) {
    for (int i = 0; i < 64; ++i)
      out[i] = half_at(block) * ((block[2 + i / 4] >> 2 * (i % 4) & 3) - 1);
  }
};

struct TypeReference {
  quant::BlockType block;
  void (*randomise)(uint8_t* block, Random& random);
  void (*exaggerate)(uint8_t* block, int which);
  void (*decode)(const uint8_t* block, double* out);
};

constexpr TypeReference REFERENCES[] = {
#define X(T)                                          \
  {{Type::T, #T, quant::T::WEIGHTS, quant::T::BYTES}, \
   Reference<Type::T>::randomise,                     \
   Reference<Type::T>::exaggerate,                    \
   Reference<Type::T>::decode},
    CONIFER_BLOCK_TYPES(X)
#undef X
};

// Random bits produce every pattern of weights, with finite scales. The result is exactly as long
// as the tensor, so that a sanitizer detects any read past the end.
inline std::vector<uint8_t> random_weights(const TypeReference& type, int64_t weights,
                                           Random& random) {
  const int64_t blocks = weights / type.block.weights;
  std::vector<uint8_t> bytes(static_cast<size_t>(blocks * type.block.bytes));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  for (int64_t i = 0; i < blocks; ++i) type.randomise(bytes.data() + i * type.block.bytes, random);
  return bytes;
}

}  // namespace
}  // namespace conifer::tests
