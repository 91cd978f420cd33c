// What the kernels need beyond Metal's own language. SHARED and TABLE are not in MSL: CUDA declares
// arrays in shared memory and constant tables differently. MLX includes <metal_stdlib> before this.
#ifndef SHARED
#define SHARED(type, name, count) threadgroup type name[count]
#endif
#define TABLE(type, name, count) constant type name[count]
#define SIMD 32

inline float exponential(float x) { return exp(x); }

// Sixteen rows by eight columns of a product, held by one simdgroup.
struct Product {
  simdgroup_float8x8 top, bottom;
};
struct Left {  // 16 x 8 of the left factor, stored row by row
  simdgroup_float8x8 top, bottom;
};
struct Right {  // 8 x 8 of the right factor, stored column by column
  simdgroup_half8x8 all;
};

inline void mma_clear(thread Product& c) {
  c.top = make_filled_simdgroup_matrix<float, 8>(0.0f);
  c.bottom = make_filled_simdgroup_matrix<float, 8>(0.0f);
}
inline void mma_load(thread Left& a, const threadgroup float* from, uint stride, uint lane) {
  simdgroup_load(a.top, from, stride);
  simdgroup_load(a.bottom, from + 8 * stride, stride);
}
inline void mma_load(thread Right& b, const threadgroup half* from, uint stride, uint lane) {
  simdgroup_load(b.all, from, stride, 0, true);
}
inline void mma_add(thread Product& c, thread Left& a, thread Right& b) {
  simdgroup_multiply_accumulate(c.top, a.top, b.all, c.top);
  simdgroup_multiply_accumulate(c.bottom, a.bottom, b.all, c.bottom);
}
inline void mma_store(thread Product& c, threadgroup float* to, uint stride, uint lane) {
  simdgroup_store(c.top, to, stride);
  simdgroup_store(c.bottom, to + 8 * stride, stride);
}
