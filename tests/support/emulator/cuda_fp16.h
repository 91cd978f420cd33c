// Stands for CUDA's own header when the CUDA text of a kernel runs in the emulator.
#pragma once
#define __device__
#define __global__
#define __grid_constant__
#define __syncthreads() emu::barrier(2, false)
#define threadIdx (emu::me().inside)
#define blockIdx (emu::me().group)
typedef bfloat __nv_bfloat16;
typedef half __half;
inline float expf(float x) { return __builtin_expf(x); }

template <typename T>
inline T __shfl_xor_sync(uint mask, T value, int lanes) {
  return emu::All<T>(value)[(emu::me().lane ^ uint(lanes)) % emu::LANES];
}

namespace emu {
inline uint tf32(float value) {  // to nearest, ties away from zero
  uint bits;
  memcpy(&bits, &value, 4);
  return (bits + 0x1000) & 0xffffe000u;
}
struct Fragments {
  float a[4], b[2];
};
inline void mma_m16n8k8(float* c, const uint* a, const uint* b) {
  Fragments mine;
  memcpy(mine.a, a, sizeof(mine.a));
  memcpy(mine.b, b, sizeof(mine.b));
  const All<Fragments> all(mine);
  for (uint i = 0; i < 4; i++) {
    const uint row = me().lane / 4 + i / 2 * 8, column = me().lane % 4 * 2 + i % 2;
    float sum = c[i];
    for (uint k = 0; k < 8; k++)
      sum += all[row % 8 * 4 + k % 4].a[row / 8 + k / 4 * 2] * all[column * 4 + k % 4].b[k / 4];
    c[i] = sum;
  }
}
}  // namespace emu
