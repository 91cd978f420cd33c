// Metal's language for g++ and clang++: enough of it that the kernels' text compiles unchanged, and
// runs on emulated threadgroups (emu.cpp). Where MSL allows more than the kernels should use, this
// is the stricter: no implicit conversion to half or bfloat, no double, no half-active simdgroup.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;

namespace emu {  // what emu.cpp gives
struct Coordinates {
  uint x, y, z;
};
struct Place {  // of a thread
  Coordinates group, inside, grid, groups, threads;
  uint index, lane, simdgroup, simdgroups;
};
const Place& me();
void* shared(int key, size_t bytes, size_t align);  // a threadgroup's array, without its contents
void barrier(int flags, bool simdgroup);
// Gives every lane of a simdgroup what all of them brought, a SLOT apart. Lanes must come together.
const unsigned char* exchange(const void* mine, size_t bytes);
void agree(uint64_t what);  // all lanes must say the same before they meet next
enum { SLOT = 64, LANES = 32 };

template <typename T>
struct All {  // of a simdgroup's lanes
  const unsigned char* slots;
  explicit All(const T& mine) : slots(exchange(&mine, sizeof(T))) {
    static_assert(sizeof(T) <= SLOT, "too large to exchange");
  }
  T operator[](uint lane) const {
    T value;
    memcpy(&value, slots + lane * SLOT, sizeof(T));
    return value;
  }
};
float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);
uint16_t float_to_bfloat(float value);  // both: to nearest, ties to even
}  // namespace emu

#define EMU_SMALL_FLOAT(name, narrow, widen)                                    \
  struct name {                                                                 \
    uint16_t bits;                                                              \
    name() = default;                                                           \
    explicit name(float value) : bits(narrow) {}                                \
    operator float() const { return widen; }                                    \
    friend name operator+(name a, name b) { return name(float(a) + float(b)); } \
    friend name operator-(name a, name b) { return name(float(a) - float(b)); } \
    friend name operator*(name a, name b) { return name(float(a) * float(b)); } \
    friend name operator/(name a, name b) { return name(float(a) / float(b)); } \
  };
namespace emu {
inline float bfloat_to_float(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}
}  // namespace emu
EMU_SMALL_FLOAT(half, emu::float_to_half(value), emu::half_to_float(bits))
EMU_SMALL_FLOAT(bfloat, emu::float_to_bfloat(value), emu::bfloat_to_float(bits))
typedef half float16_t;  // as MLX writes them in signatures
typedef bfloat bfloat16_t;

// Vectors are for wide loads and stores: CUDA has no arithmetic on them either.
#define EMU_VECTORS(name, type)                 \
  struct alignas(2 * sizeof(type)) name##2 {    \
    type x, y;                                  \
    name##2() = default;                        \
    name##2(type v) : x(v), y(v) {}             \
    name##2(type x, type y) : x(x), y(y) {}     \
  };                                            \
  struct alignas(4 * sizeof(type)) name##3 {    \
    type x, y, z;                               \
  };                                            \
  struct alignas(4 * sizeof(type)) name##4 {    \
    type x, y, z, w;                            \
  };
EMU_VECTORS(uchar, uchar)
EMU_VECTORS(ushort, ushort)
EMU_VECTORS(uint, uint)
EMU_VECTORS(ulong, ulong)
EMU_VECTORS(int, int)
EMU_VECTORS(float, float)
EMU_VECTORS(half, half)
EMU_VECTORS(bfloat, bfloat)

#define EMU_PASTE(a, b) a##b
#define SHARED(type, name, count) \
  type* const name = (type*)emu::shared(__COUNTER__, sizeof(type) * (count), alignof(type))

#ifndef CONIFER_CUDA
template <typename To, typename From>
inline To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

inline float exp(float x) { return __builtin_expf(x); }

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
inline void threadgroup_barrier(mem_flags flags) { emu::barrier(int(flags), false); }
inline void simdgroup_barrier(mem_flags flags) { emu::barrier(int(flags), true); }

template <typename T>
inline T simd_shuffle(T value, ushort from) {
  return emu::All<T>(value)[from % emu::LANES];
}
template <typename T>
inline T simd_shuffle_xor(T value, ushort mask) {
  return emu::All<T>(value)[(emu::me().lane ^ mask) % emu::LANES];
}
template <typename T>
inline T simd_shuffle_down(T value, ushort delta) {  // past the last lane: undefined, so not kept
  const emu::All<T> all(value);
  const uint from = emu::me().lane + delta;
  return from < emu::LANES ? all[from] : all[(from * 7 + 3) % emu::LANES];
}
template <typename T>
inline T simd_broadcast(T value, ushort from) {
  emu::agree(from);
  return simd_shuffle(value, from);
}
template <typename T, typename F>
inline T emu_reduce(T value, F combine) {
  const emu::All<T> all(value);
  T parts[emu::LANES];
  for (uint i = 0; i < emu::LANES; i++) parts[i] = all[i];
  for (uint n = emu::LANES / 2; n > 0; n /= 2)
    for (uint i = 0; i < n; i++) parts[i] = combine(parts[i], parts[i + n]);
  return parts[0];
}
template <typename T>
inline T simd_sum(T value) {
  return emu_reduce(value, [](T a, T b) { return T(a + b); });
}
template <typename T>
inline T simd_max(T value) {
  return emu_reduce(value, [](T a, T b) { return a > b ? a : b; });
}
template <typename T>
inline T simd_min(T value) {
  return emu_reduce(value, [](T a, T b) { return a < b ? a : b; });
}
struct simd_vote {
  typedef uint64_t vote_t;
  uint64_t bits;
  explicit operator vote_t() const { return bits; }
};
inline simd_vote simd_ballot(bool value) {
  const emu::All<bool> all(value);
  uint64_t bits = 0;
  for (uint i = 0; i < emu::LANES; i++) bits |= uint64_t(all[i]) << i;
  return simd_vote{bits};
}

// Lane l has of a matrix the elements (row, column) and (row, column + 1), as MLX's steel takes for
// granted too. MSL does not say so; a kernel that uses no thread_elements does not depend on it.
template <typename T, int Columns, int Rows = Columns>
struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8, "Metal has 8 x 8 only");
  T elements[2];
  T (&thread_elements())[2] { return elements; }
  static uint row() { return (emu::me().lane / 4 & 4) + emu::me().lane / 2 % 4; }
  static uint column() { return (emu::me().lane / 4 & 2) * 2 + emu::me().lane % 2 * 2; }
  static uint holder(uint row, uint column) {
    return (row & 4) * 4 + (column & 4) * 2 + row % 4 * 2 + column / 2 % 2;
  }
};
typedef simdgroup_matrix<float, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8> simdgroup_bfloat8x8;

template <typename T, int Columns, int Rows = Columns>
inline simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
  return {{value, value}};
}
template <typename T>
inline size_t emu_at(const T* p, ulong stride, ulong2 origin, bool transpose, uint j) {
  typedef simdgroup_matrix<float, 8> M;
  if (j == 0) emu::agree(uint64_t(p) + 31 * stride + 7 * transpose);
  const ulong row = M::row(), column = M::column() + j;
  return transpose ? (origin.x + column) * stride + origin.y + row
                   : (origin.y + row) * stride + origin.x + column;
}
template <typename T>
inline void simdgroup_load(
    simdgroup_matrix<T, 8>& m, const T* from, ulong stride = 8, ulong2 origin = 0,
    bool transpose = false) {
  for (uint j = 0; j < 2; j++) m.elements[j] = from[emu_at(from, stride, origin, transpose, j)];
}
template <typename T>
inline void simdgroup_store(
    const simdgroup_matrix<T, 8>& m, T* to, ulong stride = 8, ulong2 origin = 0,
    bool transpose = false) {
  for (uint j = 0; j < 2; j++) to[emu_at(to, stride, origin, transpose, j)] = m.elements[j];
}
template <typename D, typename A, typename B, typename C>
inline void simdgroup_multiply_accumulate(
    simdgroup_matrix<D, 8>& d, const simdgroup_matrix<A, 8>& a, const simdgroup_matrix<B, 8>& b,
    const simdgroup_matrix<C, 8>& c) {
  typedef simdgroup_matrix<D, 8> M;
  struct Both {
    simdgroup_matrix<A, 8> a;
    simdgroup_matrix<B, 8> b;
  };
  const emu::All<Both> all(Both{a, b});
  for (uint j = 0; j < 2; j++) {
    const uint row = M::row(), column = M::column() + j;
    float sum = float(c.elements[j]);
    for (uint k = 0; k < 8; k++)
      sum += float(all[M::holder(row, k)].a.elements[k % 2]) *
             float(all[M::holder(k, column)].b.elements[column % 2]);
    d.elements[j] = D(sum);
  }
}
// Words of the language come last: they would break the headers above.
#define kernel
#define device
#define constant
#define thread
#define threadgroup
#define double double_is_not_in_metal
#endif
