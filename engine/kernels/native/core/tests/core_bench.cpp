// Measures the speed of products. Usage: core_bench [type ...], with the options --threads N,
// --tokens N, --cols N, --mib N and --isa ID.
//
// Decode is measured in bytes of weights per second, compared with a plain read of the same bytes
// by the same threads. Prefill is measured in multiply-adds per second. Both are the best of
// several runs that alternate with the read, because machines are shared. With --mib 1 instead of
// 256, the weights stay in a core's cache: what computing costs without waiting for memory.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gemm/matmul.h"
#include "isa/isa.h"
#include "reference.h"

using namespace conifer;
using namespace conifer::gemm;
using namespace conifer::quant;
using namespace conifer::tests;
using threads::Range;
using threads::share;

namespace {

double seconds() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

template <class F>
double timed(F&& f) {
  const double start = seconds();
  f();
  return seconds() - start;
}

uint64_t read_all(const std::vector<uint8_t>& bytes, Pool& pool) {
  std::atomic<uint64_t> total{0};
  pool.run([&](int thread, int threads) {
    typedef uint64_t Eight __attribute__((vector_size(64), aligned(1), may_alias));
    const Range part = share(static_cast<int64_t>(bytes.size()), thread, threads, 256);
    Eight a{}, b{}, c{}, d{};
    const uint8_t* p = bytes.data();
    for (int64_t i = part.begin; i + 256 <= part.end; i += 256) {
      a ^= *reinterpret_cast<const Eight*>(p + i);
      b ^= *reinterpret_cast<const Eight*>(p + i + 64);
      c ^= *reinterpret_cast<const Eight*>(p + i + 128);
      d ^= *reinterpret_cast<const Eight*>(p + i + 192);
    }
    a ^= b ^ c ^ d;
    total += a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
  });
  return total;
}

void force_isa(const std::string& id) {
  for (isa::Isa isa : isa::ALL)
    if (isa::id(isa) == id) isa::force(isa);
}

void bench(const TypeReference& type, int64_t cols, int64_t tokens, int64_t mib, Pool& pool) {
  const int64_t bytes_wanted = mib << 20;
  const int64_t rows = bytes_wanted / row_bytes(type.block.type, cols) / 64 * 64;
  Random generator(1);
  const std::vector<uint8_t> some = random_weights(type, 1 << 20, generator);
  std::vector<uint8_t> bytes(static_cast<size_t>(rows * row_bytes(type.block.type, cols)));
  for (size_t at = 0; at < bytes.size(); at += some.size())
    std::memcpy(bytes.data() + at, some.data(), std::min(some.size(), bytes.size() - at));
  std::vector<float> x(static_cast<size_t>(tokens * cols)), y(static_cast<size_t>(tokens * rows));
  for (float& value : x) value = std::normal_distribution<float>()(generator);
  const Matrix w = {bytes.data(), type.block.type, rows, cols};
  Activations scratch;

  volatile uint64_t kept = 0;
  double read = 1e9, one = 1e9;
  const int turns = mib < 64 ? 256 : 7;
  for (int turn = 0; turn < turns; ++turn) {
    read = std::min(read, timed([&] { kept = kept + read_all(bytes, pool); }));
    one = std::min(one,
                   timed([&] { matmul(w, x.data(), 1, y.data(), pool, scratch, Tokens::Single); }));
  }
  const double size = static_cast<double>(bytes.size()) / 1e9;
  std::printf("%-7s decode %6.2f GB/s of %6.2f (%3.0f %%)", type.block.name, size / one,
              size / read, 100 * read / one);

  const int64_t some_rows = std::min<int64_t>(rows, 2048);
  const Matrix part = {bytes.data(), type.block.type, some_rows, cols};
  for (int64_t n : {tokens, std::min<int64_t>(tokens, 32), std::min<int64_t>(tokens, 4)}) {
    double many = 1e9;
    for (int turn = 0; turn < 5; ++turn)
      many = std::min(many, timed([&] { matmul(part, x.data(), n, y.data(), pool, scratch); }));
    std::printf("  %4ld: %6.1f GMAC/s", n, static_cast<double>(some_rows * cols * n) / many / 1e9);
  }
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace

int main(int count, char** arguments) {
  int threads = 2;
  int64_t tokens = 512, cols = 2048, mib = 256;
  std::vector<std::string> wanted;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    if (argument == "--threads" && i + 1 < count) threads = std::atoi(arguments[++i]);
    else if (argument == "--tokens" && i + 1 < count) tokens = std::atol(arguments[++i]);
    else if (argument == "--cols" && i + 1 < count) cols = std::atol(arguments[++i]);
    else if (argument == "--mib" && i + 1 < count) mib = std::atol(arguments[++i]);
    else if (argument == "--isa" && i + 1 < count) force_isa(arguments[++i]);
    else wanted.push_back(argument);
  }
  Pool pool(threads);
  std::printf("%s, %d threads, %ld columns\n", isa::name(isa::current()), threads, cols);
  for (const TypeReference& type : REFERENCES)
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), type.block.name) != wanted.end())
      bench(type, cols, tokens, mib, pool);
}
