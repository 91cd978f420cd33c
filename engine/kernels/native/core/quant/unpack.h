// Every block type unpacked to one plain form, in C++ with small vectors. Included by the
// translation units of several instruction sets, so all of it has internal linkage.
#pragma once

#include "quant/types.h"

#if defined(__SSSE3__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace conifer {
namespace {

// Up to 256 weights of a row: weight i is scale[i / 16] * q[i] + min[i / 16].
struct Unpacked {
  alignas(64) int8_t q[256];
  float scale[16];
  float min[16];
};

// Each Format: WEIGHTS per block; GROUP, over how many weights a scale holds; whether MINS exist;
// unpack of block `index` of a chunk (always 0 for blocks of 256) into its place.
template <Type type>
struct Format;

inline void put_scale(Unpacked& out, int index, float scale, float min = 0) {
  out.scale[2 * index] = out.scale[2 * index + 1] = scale;
  out.min[2 * index] = out.min[2 * index + 1] = min;
}

// 16 bytes at a time, in the vectors that GCC and Clang have on every machine.
typedef uint8_t Bytes __attribute__((vector_size(16)));

inline Bytes load(const void* p) {
  Bytes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(int8_t* q, Bytes v) { std::memcpy(q, &v, sizeof v); }

inline Bytes fill(uint8_t byte) { return Bytes{} + byte; }

// `bits` (1, 2 or 4) of each byte, from bit `shift` on.
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

// values[index] for 16 indices below 16.
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

// 16 where a bit of the two bytes is set, else 0.
inline Bytes fifth_bits(const uint8_t* two) {
  constexpr uint64_t EACH = 0x0101010101010101;
  typedef uint64_t Words __attribute__((vector_size(16)));
  const Bytes spread = (Bytes)Words{two[0] * EACH, two[1] * EACH};
  const Bytes bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  return (Bytes)((spread & bit) != 0) & fill(16);
}

inline void put_fives(int8_t* q, const uint8_t* packed, const uint8_t* high, int offset) {
  const Bytes v = load(packed);
  store(q, (field(v, 0, 4) | fifth_bits(high)) - fill(static_cast<uint8_t>(offset)));
  store(q + 16, (field(v, 4, 4) | fifth_bits(high + 2)) - fill(static_cast<uint8_t>(offset)));
}

template <class Block, int WEIGHTS_, int GROUP_, bool MINS_>
struct FormatOf {
  static constexpr int WEIGHTS = WEIGHTS_, GROUP = GROUP_, BYTES = sizeof(Block);
  static constexpr bool MINS = MINS_;

  // Packed, so that it may lie anywhere; and of bytes and halves that nobody writes.
  static const Block& read(const uint8_t* data) { return *reinterpret_cast<const Block*>(data); }
};

template <>
struct Format<Type::Q4_0> : FormatOf<BlockQ4_0, 32, 32, false> {
  static void unpack(const uint8_t* data, int index, Unpacked& out) {
    const BlockQ4_0& b = read(data);
    put_scale(out, index, f16_to_float(b.d));
    put_nibbles(out.q + 32 * index, b.q, 16, 8);
  }
};

template <>
struct Format<Type::Q4_1> : FormatOf<BlockQ4_1, 32, 32, true> {
  static void unpack(const uint8_t* data, int index, Unpacked& out) {
    const BlockQ4_1& b = read(data);
    put_scale(out, index, f16_to_float(b.d), f16_to_float(b.m));
    put_nibbles(out.q + 32 * index, b.q, 16, 0);
  }
};

template <>
struct Format<Type::Q5_0> : FormatOf<BlockQ5_0, 32, 32, false> {
  static void unpack(const uint8_t* data, int index, Unpacked& out) {
    const BlockQ5_0& b = read(data);
    put_scale(out, index, f16_to_float(b.d));
    put_fives(out.q + 32 * index, b.q, b.high, 16);
  }
};

template <>
struct Format<Type::Q5_1> : FormatOf<BlockQ5_1, 32, 32, true> {
  static void unpack(const uint8_t* data, int index, Unpacked& out) {
    const BlockQ5_1& b = read(data);
    put_scale(out, index, f16_to_float(b.d), f16_to_float(b.m));
    put_fives(out.q + 32 * index, b.q, b.high, 0);
  }
};

template <>
struct Format<Type::Q8_0> : FormatOf<BlockQ8_0, 32, 32, false> {
  static void unpack(const uint8_t* data, int index, Unpacked& out) {
    const BlockQ8_0& b = read(data);
    put_scale(out, index, f16_to_float(b.d));
    std::memcpy(out.q + 32 * index, b.q, 32);
  }
};

template <>
struct Format<Type::IQ4_NL> : FormatOf<BlockIQ4_NL, 32, 32, false> {
  static void unpack(const uint8_t* data, int index, Unpacked& out) {
    const BlockIQ4_NL& b = read(data);
    put_scale(out, index, f16_to_float(b.d));
    put_codes(out.q + 32 * index, b.q, IQ4_VALUES);
  }
};

template <>
struct Format<Type::MXFP4> : FormatOf<BlockMXFP4, 32, 32, false> {
  static void unpack(const uint8_t* data, int index, Unpacked& out) {
    const BlockMXFP4& b = read(data);
    put_scale(out, index, mxfp4_scale(b.e));
    put_codes(out.q + 32 * index, b.q, MXFP4_VALUES);
  }
};

template <>
struct Format<Type::IQ4_XS> : FormatOf<BlockIQ4_XS, 256, 32, false> {
  static void unpack(const uint8_t* data, int, Unpacked& out) {
    const BlockIQ4_XS& b = read(data);
    const float d = f16_to_float(b.d);
    for (int i = 0; i < 8; ++i) {
      const int low = b.scales_low[i / 2] >> 4 * (i % 2) & 15;
      put_scale(out, i, d * static_cast<float>((low | (b.scales_high >> 2 * i & 3) << 4) - 32));
      put_codes(out.q + 32 * i, b.q + 16 * i, IQ4_VALUES);
    }
  }
};

template <>
struct Format<Type::Q2_K> : FormatOf<BlockQ2_K, 256, 16, true> {
  static void unpack(const uint8_t* data, int, Unpacked& out) {
    const BlockQ2_K& b = read(data);
    const float d = f16_to_float(b.d), dmin = -f16_to_float(b.dmin);
    for (int i = 0; i < 16; ++i) {
      out.scale[i] = d * static_cast<float>(b.scales[i] & 15);
      out.min[i] = dmin * static_cast<float>(b.scales[i] >> 4);
    }
    for (int i = 0; i < 8; ++i)
      for (int j = 0; j < 32; j += 16)
        store(out.q + 32 * i + j, field(load(b.q + 32 * (i / 4) + j), 2 * (i % 4), 2));
  }
};

template <>
struct Format<Type::Q3_K> : FormatOf<BlockQ3_K, 256, 16, false> {
  static void unpack(const uint8_t* data, int, Unpacked& out) {
    const BlockQ3_K& b = read(data);
    const float d = f16_to_float(b.d);
    for (int i = 0; i < 16; ++i) {
      const int low = b.scales[i % 8] >> 4 * (i / 8) & 15;
      const int high = b.scales[8 + i % 4] >> 2 * (i / 4) & 3;
      out.scale[i] = d * static_cast<float>((low | high << 4) - 32);
      out.min[i] = 0;
    }
    for (int i = 0; i < 8; ++i)
      for (int j = 0; j < 32; j += 16) {
        const Bytes low = field(load(b.q + 32 * (i / 4) + j), 2 * (i % 4), 2);
        store(out.q + 32 * i + j, (low | field(load(b.high + j), i, 1) << fill(2)) - fill(4));
      }
  }
};

// The 8 scales and 8 minima of 6 bits that Q4_K and Q5_K keep in 12 bytes, a byte each.
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

template <>
struct Format<Type::Q4_K> : FormatOf<BlockQ4_K, 256, 32, true> {
  static void unpack(const uint8_t* data, int, Unpacked& out) {
    const BlockQ4_K& b = read(data);
    put_k_scales(out, b.scales, f16_to_float(b.d), f16_to_float(b.dmin));
    for (int i = 0; i < 4; ++i) put_nibbles(out.q + 64 * i, b.q + 32 * i, 32, 0);
  }
};

template <>
struct Format<Type::Q5_K> : FormatOf<BlockQ5_K, 256, 32, true> {
  static void unpack(const uint8_t* data, int, Unpacked& out) {
    const BlockQ5_K& b = read(data);
    put_k_scales(out, b.scales, f16_to_float(b.d), f16_to_float(b.dmin));
    for (int i = 0; i < 8; ++i)
      for (int j = 0; j < 32; j += 16) {
        const Bytes low = field(load(b.q + 32 * (i / 2) + j), 4 * (i % 2), 4);
        store(out.q + 32 * i + j, low | field(load(b.high + j), i, 1) << fill(4));
      }
  }
};

template <>
struct Format<Type::Q6_K> : FormatOf<BlockQ6_K, 256, 16, false> {
  static void unpack(const uint8_t* data, int, Unpacked& out) {
    const BlockQ6_K& b = read(data);
    const float d = f16_to_float(b.d);
    for (int i = 0; i < 16; ++i) {
      out.scale[i] = d * static_cast<float>(b.scales[i]);
      out.min[i] = 0;
    }
    for (int i = 0; i < 8; ++i)
      for (int j = 0; j < 32; j += 16) {
        const Bytes low = field(load(b.q + 64 * (i / 4) + 32 * (i % 2) + j), 4 * (i / 2 % 2), 4);
        const Bytes high = field(load(b.high + 32 * (i / 4) + j), 2 * (i % 4), 2);
        store(out.q + 32 * i + j, (low | high << fill(4)) - fill(32));
      }
  }
};

// `weights` (at most 256, whole blocks) starting at `data`; those past the end become zero.
template <class F>
inline void unpack_chunk(const uint8_t* data, int weights, Unpacked& out) {
  if constexpr (F::WEIGHTS == 256) {
    F::unpack(data, 0, out);
  } else {
    const int blocks = weights / F::WEIGHTS;
    for (int i = 0; i < blocks; ++i) F::unpack(data + i * F::BYTES, i, out);
    for (int i = blocks; i < 8; ++i) put_scale(out, i, 0);
    std::memset(out.q + weights, 0, static_cast<size_t>(256 - weights));
  }
}

template <Type type>
struct Constant {
  static constexpr Type value = type;
};

// Call f with a Constant of the type, if it is quantised.
template <class Call>
inline void with_type(Type type, Call&& f) {
  switch (type) {
    case Type::Q4_0: return f(Constant<Type::Q4_0>{});
    case Type::Q4_1: return f(Constant<Type::Q4_1>{});
    case Type::Q5_0: return f(Constant<Type::Q5_0>{});
    case Type::Q5_1: return f(Constant<Type::Q5_1>{});
    case Type::Q8_0: return f(Constant<Type::Q8_0>{});
    case Type::Q2_K: return f(Constant<Type::Q2_K>{});
    case Type::Q3_K: return f(Constant<Type::Q3_K>{});
    case Type::Q4_K: return f(Constant<Type::Q4_K>{});
    case Type::Q5_K: return f(Constant<Type::Q5_K>{});
    case Type::Q6_K: return f(Constant<Type::Q6_K>{});
    case Type::IQ4_NL: return f(Constant<Type::IQ4_NL>{});
    case Type::IQ4_XS: return f(Constant<Type::IQ4_XS>{});
    case Type::MXFP4: return f(Constant<Type::MXFP4>{});
    case Type::F32:
    case Type::F16:
    case Type::BF16: return;
  }
}

}  // namespace
}  // namespace conifer
