// GGML's tensor types: their ids, the bytes of their blocks, and half-precision conversions.
//
// A row of a tensor is a run of blocks; a block is a few scales and its packed weights. Packed
// fields are spread low bits first: of a group of bytes, the low nibbles precede the high ones.
// Blocks are read where they lie in the file, so nothing here may assume alignment.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace conifer {

enum class Type : int32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q2_K = 10,
  Q3_K = 11,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  IQ4_NL = 20,
  IQ4_XS = 23,
  BF16 = 30,
  MXFP4 = 39,
};

inline constexpr Type TYPES[] = {
    Type::F32,  Type::F16,  Type::BF16, Type::Q4_0,   Type::Q4_1,   Type::Q5_0,
    Type::Q5_1, Type::Q8_0, Type::Q2_K, Type::Q3_K,   Type::Q4_K,   Type::Q5_K,
    Type::Q6_K, Type::IQ4_NL, Type::IQ4_XS, Type::MXFP4,
};

// What gates a feed-forward layer. Silu: gate * sigmoid(gate) * up. Clamped: gate *
// sigmoid(CLAMP_SLOPE gate) * (up + 1), gate at most CLAMP_LIMIT and up within -CLAMP_LIMIT.. it.
enum class Activation : int32_t { Silu = 0, Clamped = 1 };
inline constexpr float CLAMP_SLOPE = 1.702f, CLAMP_LIMIT = 7.0f;

#pragma pack(push, 1)
struct BlockQ4_0 {
  uint16_t d;
  uint8_t q[16];
};
struct BlockQ4_1 {
  uint16_t d, m;
  uint8_t q[16];
};
struct BlockQ5_0 {
  uint16_t d;
  uint8_t high[4];
  uint8_t q[16];
};
struct BlockQ5_1 {
  uint16_t d, m;
  uint8_t high[4];
  uint8_t q[16];
};
struct BlockQ8_0 {
  uint16_t d;
  int8_t q[32];
};
struct BlockQ2_K {
  uint8_t scales[16];  // low nibble scale, high nibble minimum, of 16 weights each
  uint8_t q[64];
  uint16_t d, dmin;
};
struct BlockQ3_K {
  uint8_t high[32];
  uint8_t q[64];
  uint8_t scales[12];  // 16 scales of 6 bits, less 32
  uint16_t d;
};
struct BlockQ4_K {
  uint16_t d, dmin;
  uint8_t scales[12];  // 8 scales and 8 minima of 6 bits
  uint8_t q[128];
};
struct BlockQ5_K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t high[32];
  uint8_t q[128];
};
struct BlockQ6_K {
  uint8_t q[128];
  uint8_t high[64];
  int8_t scales[16];  // of 16 weights each
  uint16_t d;
};
struct BlockIQ4_NL {
  uint16_t d;
  uint8_t q[16];
};
struct BlockIQ4_XS {
  uint16_t d;
  uint16_t scales_high;
  uint8_t scales_low[4];
  uint8_t q[128];
};
struct BlockMXFP4 {
  uint8_t e;  // a power of two
  uint8_t q[16];
};
#pragma pack(pop)

// The 4-bit codebooks of IQ4_NL and IQ4_XS, and of MXFP4 (twice its value, to stay whole).
inline constexpr int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                         1,    13,   25,  38,  53,  69,  89,  113};
inline constexpr int8_t MXFP4_VALUES[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                            0, -1, -2, -3, -4, -6, -8, -12};

static constexpr int64_t block_weights(Type type) {
  switch (type) {
    case Type::F32:
    case Type::F16:
    case Type::BF16: return 1;
    case Type::Q2_K:
    case Type::Q3_K:
    case Type::Q4_K:
    case Type::Q5_K:
    case Type::Q6_K:
    case Type::IQ4_XS: return 256;
    default: return 32;
  }
}

static constexpr int64_t block_bytes(Type type) {
  switch (type) {
    case Type::F32: return 4;
    case Type::F16:
    case Type::BF16: return 2;
    case Type::Q4_0: return sizeof(BlockQ4_0);
    case Type::Q4_1: return sizeof(BlockQ4_1);
    case Type::Q5_0: return sizeof(BlockQ5_0);
    case Type::Q5_1: return sizeof(BlockQ5_1);
    case Type::Q8_0: return sizeof(BlockQ8_0);
    case Type::Q2_K: return sizeof(BlockQ2_K);
    case Type::Q3_K: return sizeof(BlockQ3_K);
    case Type::Q4_K: return sizeof(BlockQ4_K);
    case Type::Q5_K: return sizeof(BlockQ5_K);
    case Type::Q6_K: return sizeof(BlockQ6_K);
    case Type::IQ4_NL: return sizeof(BlockIQ4_NL);
    case Type::IQ4_XS: return sizeof(BlockIQ4_XS);
    case Type::MXFP4: return sizeof(BlockMXFP4);
  }
  return 0;
}

static constexpr int64_t row_bytes(Type type, int64_t cols) {
  return cols / block_weights(type) * block_bytes(type);
}

static constexpr bool is_float(Type type) {
  return type == Type::F32 || type == Type::F16 || type == Type::BF16;
}

// Weights of `rows` output features, each a run of blocks over `cols` input features. A stack of
// experts is one Matrix per expert.
struct Matrix {
  const uint8_t* data;
  Type type;
  int64_t rows, cols;

  int64_t stride() const { return row_bytes(type, cols); }
};

// These are static, not inline: a translation unit compiled for one instruction set must not lend
// its copy to the others.
static inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

static inline float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Exact for every half, subnormals, infinities and NaN included.
static inline float f16_to_float(uint16_t half) {
#if defined(__F16C__)
  return _cvtsh_ss(half);
#elif defined(__aarch64__)
  __fp16 value;
  std::memcpy(&value, &half, 2);
  return value;
#else
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fff) << 13;
  if (magnitude >= 0x7c00u << 13) return bits_float(sign | magnitude | 0x7f800000u);
  return bits_float(sign | float_bits(bits_float(magnitude) * 0x1p112f));
#endif
}

static inline uint16_t float_to_f16(float x) {
  const uint32_t bits = float_bits(x);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 0x38800000u) {  // subnormal half: let a float addition round it
    const float rounded = bits_float(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (float_bits(rounded) - 0x3f000000u));
  }
  const uint32_t odd = magnitude >> 13 & 1;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfff + odd) >> 13));
}

static inline float bf16_to_float(uint16_t x) { return bits_float(static_cast<uint32_t>(x) << 16); }

// MXFP4's shared exponent, halved because its codebook is doubled: 2^(e - 128).
static inline float mxfp4_scale(uint8_t e) {
  return bits_float(e > 1 ? static_cast<uint32_t>(e - 1) << 23 : 0x00200000u << e);
}

}  // namespace conifer
