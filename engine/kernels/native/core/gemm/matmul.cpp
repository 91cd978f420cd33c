// Choice of the instruction set, and the public products on top of its kernels.
#include "gemm/matmul.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "isa/kernels.h"
#include "gemm/gemm_amx.h"
#include "quant/unpack.h"

#if defined(__linux__) && defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace conifer {

namespace {

constexpr int64_t TOKENS_AT_ONCE = 512;  // whose views and partial sums fit the second-level cache

bool cpu_has(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (isa) {
    case Isa::Portable: return true;
    case Isa::Avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::Avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni") && cpu_has(Isa::Avx2);
    case Isa::Neon: return false;
  }
  return false;
#elif defined(__linux__) && defined(__aarch64__)
  if (isa == Isa::Neon) return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
  return isa == Isa::Portable;
#else
  return isa == Isa::Portable;
#endif
}

const Kernels* kernels_of(Isa isa) {
  if (!cpu_has(isa)) return nullptr;
  switch (isa) {
    case Isa::Portable: return kernels_portable();
#if defined(__x86_64__)
    case Isa::Avx2: return kernels_avx2();
    case Isa::Avx512: return kernels_avx512();
#elif defined(__aarch64__)
    case Isa::Neon: return kernels_neon();
#endif
    default: return nullptr;
  }
}

struct Choice {
  Isa isa;
  const Kernels* kernels;
};

Choice best() {
  for (Isa isa : {Isa::Avx512, Isa::Neon, Isa::Avx2})
    if (const Kernels* kernels = kernels_of(isa)) return {isa, kernels};
  return {Isa::Portable, kernels_portable()};
}

Choice& choice() {
  static Choice chosen = best();
  return chosen;
}

// `token` gives the index of the i-th token.
template <class Token>
void multiply(const Matrix& w, const Activations& x, int64_t n, Token token, float* y,
              int64_t y_stride, int64_t row0, int64_t row1) {
  TokenView few[4];
  static thread_local std::vector<TokenView> many;
  for (int64_t i0 = 0; i0 < n; i0 += TOKENS_AT_ONCE) {
    const int64_t count = std::min(TOKENS_AT_ONCE, n - i0);
    TokenView* views = few;
    if (count > 4) {
      many.resize(static_cast<size_t>(count));
      views = many.data();
    }
    for (int64_t i = 0; i < count; ++i) views[i] = x.token(token(i0 + i));
    kernels().multiply(w, views, count, y + i0 * y_stride, y_stride, row0, row1);
  }
}

}  // namespace

const Kernels& kernels() { return *choice().kernels; }

Isa isa() { return choice().isa; }

bool tiles_serve(int64_t tokens, std::initializer_list<const Matrix*> matrices) {
  const auto blocks = [](const Matrix* w) { return !is_float(w->type); };
  return tokens >= AMX_TOKENS && isa() == Isa::Avx512 && amx_multiplies() &&
         std::all_of(matrices.begin(), matrices.end(), blocks);
}

bool isa_supported(Isa isa) { return kernels_of(isa) != nullptr; }

void force_isa(Isa isa) {
  if (const Kernels* kernels = kernels_of(isa)) choice() = {isa, kernels};
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::Portable: return "portable";
    case Isa::Avx2: return "AVX2";
    case Isa::Neon: return "NEON";
    case Isa::Avx512: return "AVX-512 VNNI";
  }
  return "";
}

void matmul_rows(const Matrix& w, const Activations& x, int64_t token0, int64_t token1, float* y,
                 int64_t y_stride, int64_t row0, int64_t row1) {
  if (x.tile(0)) return multiply_tiles(w, x, y, y_stride, row0, row1);
  multiply(w, x, token1 - token0, [token0](int64_t i) { return token0 + i; }, y, y_stride, row0,
           row1);
}

void matmul_rows(const Matrix& w, const Activations& x, const int32_t* token_ids, int64_t n,
                 float* y, int64_t y_stride, int64_t row0, int64_t row1) {
  multiply(w, x, n, [token_ids](int64_t i) { return token_ids[i]; }, y, y_stride, row0, row1);
}

namespace {

template <class F>
void dequantize_row(const uint8_t* data, int64_t cols, float* out) {
  Unpacked chunk;
  for (int64_t n = 0; n < cols; n += 256) {
    const int weights = static_cast<int>(std::min<int64_t>(256, cols - n));
    unpack_chunk<F>(data + n / F::WEIGHTS * F::BYTES, weights, chunk);
    for (int i = 0; i < weights; ++i)
      out[n + i] = chunk.scale[i / 16] * static_cast<float>(chunk.q[i]) + chunk.min[i / 16];
  }
}

void read_floats(Type type, const uint8_t* data, int64_t cols, float* out) {
  if (type == Type::F32) {
    std::memcpy(out, data, static_cast<size_t>(cols) * 4);
    return;
  }
  for (int64_t i = 0; i < cols; ++i) {
    uint16_t half;
    std::memcpy(&half, data + 2 * i, 2);
    out[i] = type == Type::F16 ? f16_to_float(half) : bf16_to_float(half);
  }
}

}  // namespace

void dequantize_rows(const Matrix& w, const int32_t* ids, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const uint8_t* data = w.data + ids[i] * w.stride();
    if (is_float(w.type)) read_floats(w.type, data, w.cols, out + i * w.cols);
    with_type(w.type, [&](auto type) {
      dequantize_row<Format<decltype(type)::value>>(data, w.cols, out + i * w.cols);
    });
  }
}

void matmul(const Matrix& w, const float* x, int64_t tokens, float* y, Pool& pool) {
  static thread_local Activations scratch;
  matmul(w, x, tokens, y, pool, scratch);
}

void matmul(const Matrix& w, const float* x, int64_t tokens, float* y, Pool& pool,
            Activations& scratch) {
  scratch.prepare(x, tokens, w.cols, w.cols, tiles_serve(tokens, {&w}));
  pool.run([&](int thread, int threads) {
    if (!is_float(w.type)) {
      scratch.quantize(thread, threads);
      pool.barrier();
    }
    const Range rows = share(w.rows, thread, threads);
    matmul_rows(w, scratch, int64_t{0}, tokens, y, w.rows, rows.begin, rows.end);
  });
}

}  // namespace conifer
