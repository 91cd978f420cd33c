// Runs a kernel on an emulated grid, and watches every access to memory.
//
// A thread is a fiber. It runs until it needs its simdgroup (exchange) or its threadgroup (barrier);
// when all have come to the same line, all go on, in an order that the seed chooses. The kernel is
// compiled with -fsanitize=thread and -fsanitize=undefined, but linked with neither library: the
// functions that those would bring are here. So loads and stores are seen without a change to the
// source, and checked for bounds, alignment, races within a threadgroup and between threadgroups,
// memory never written, and outputs left out.
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "msl.h"
#undef kernel
#undef device
#undef constant
#undef thread
#undef threadgroup
#undef double

extern "C" void emu_entry(void** buffers);  // the kernel's, made by emulate.py

namespace emu {
namespace {

enum { STACK = 128 << 10, GUARD = 64, LIMIT = 32 << 10, MANY = -2, NOBODY = -1 };
enum State { READY, SIMD, BARRIER, DONE };

struct Buffer {
  char* base;
  uint64_t size;
  int output;
};
struct Access {  // of a byte of threadgroup memory: who, and after how many barriers
  int thread = NOBODY;
  uint barriers = 0, simd_barriers = 0;
};
struct Byte {
  bool inside = false, written = false;
  Access write, read;
};
struct Fiber {
  ucontext_t context;
  char* stack;
  State state;
  const void* site;
  Place place;
  uint met;  // exchanges so far
  uint64_t said;
};

std::vector<Buffer> buffers;
std::vector<std::vector<int>> writers;  // of every byte of an output: the thread in the grid
std::vector<Fiber> fibers;
std::vector<char> arena(LIMIT + (64 * GUARD));
std::vector<Byte> shadow(arena.size());
std::map<int, size_t> arrays;
size_t arena_used, arena_payload;
alignas(64) unsigned char slots[32][2][LANES][SLOT];
uint barriers, simd_barriers[32];
ucontext_t scheduler;
Fiber* current;
int threads_in_group, group_number;
std::string failure;
void** arguments;
uintptr_t image_start, image_end;
std::mt19937 random_source;
uint64_t loads, stores;

[[noreturn]] void fail(const void* site, const char* format, ...) {
  char text[512], where[256] = "";
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof(text), format, list);
  va_end(list);
  const Place& p = current->place;
  snprintf(
      where, sizeof(where), " @0x%zx thread %u of threadgroup (%u, %u, %u)",
      site ? size_t((uintptr_t)site - image_start - 1) : 0, p.index, p.group.x, p.group.y, p.group.z);
  failure = std::string(text) + where;
  setcontext(&scheduler);  // leaves all fibers where they are
  abort();
}

void wait(State state, const void* site) {
  current->state = state;
  current->site = site;
  swapcontext(&current->context, &scheduler);
}

bool conflict(const Access& before, uint thread, uint simdgroup) {
  if (before.thread == NOBODY || before.thread == int(thread)) return false;
  if (before.barriers != barriers) return false;
  const bool together = before.thread != MANY && uint(before.thread) / LANES == simdgroup;
  return !together || before.simd_barriers == simd_barriers[simdgroup];
}

void check(const void* address, size_t size, bool write, bool aligned, const void* site) {
  if (!current) return;
  char* p = (char*)address;
  const char* verb = write ? "writes" : "reads";
  (write ? stores : loads)++;
  if (p >= current->stack && p < current->stack + STACK) return;
  if (aligned && uintptr_t(p) % size)
    fail(site, "%s %zu bytes at an address that is no multiple of it", verb, size);
  if (p >= arena.data() && p < arena.data() + arena.size()) {
    const uint me = current->place.index, simdgroup = current->place.simdgroup;
    for (size_t i = p - arena.data(), end = i + size; i < end; i++) {
      Byte& b = shadow[i];
      if (!b.inside) fail(site, "%s outside of a threadgroup array", verb);
      if (!write && !b.written) fail(site, "reads threadgroup memory that nobody wrote");
      if (conflict(b.write, me, simdgroup)) fail(site, "%s what another thread wrote since the last barrier", verb);
      if (write && conflict(b.read, me, simdgroup)) fail(site, "writes what another thread read since the last barrier");
      const Access now{int(me), barriers, simd_barriers[simdgroup]};
      if (write) {
        b.write = now;
        b.written = true;
      } else {
        const Access& r = b.read;
        const bool others = r.thread != NOBODY && r.thread != int(me) && r.barriers == barriers;
        b.read = now;
        if (others) b.read.thread = MANY;
      }
    }
    return;
  }
  for (size_t n = 0; n < buffers.size(); n++) {
    Buffer& b = buffers[n];
    if (p < b.base || p >= b.base + b.size) continue;
    if (p + size > b.base + b.size) fail(site, "%s past the end of buffer %zu", verb, n);
    if (!b.output) {
      if (write) fail(site, "writes to buffer %zu, an input", n);
      return;
    }
    const int me = group_number * threads_in_group + int(current->place.index);
    for (size_t i = p - b.base, end = i + size; i < end; i++) {
      int& owner = writers[n][i];
      if (write && owner != NOBODY && owner != me) fail(site, "two threads write byte %zu of output %zu", i, n);
      if (!write && owner != me) fail(site, "reads output %zu, which it did not write", n);
      if (write) owner = me;
    }
    return;
  }
  const uintptr_t at = (uintptr_t)p;
  if (p >= (char*)slots && p < (char*)slots + sizeof(slots) && !write) return;
  if (at >= image_start && at < image_end && !write) return;  // a table of constants
  if (p >= (char*)fibers.data() && p < (char*)(fibers.data() + fibers.size()) && !write) return;
  fail(site, "%s %zu bytes that are in no buffer (%p)", verb, size, address);
}

void run_fiber(int index) {
  current = &fibers[index];
  emu_entry(arguments);
  current->state = DONE;
  setcontext(&scheduler);
}

// Lets all go on who have come together. Returns whether anybody may.
bool release() {
  bool any = false;
  for (uint first = 0; first < fibers.size(); first += LANES) {
    const uint end = std::min<size_t>(fibers.size(), first + LANES);
    uint waiting = 0, same = 0;
    for (uint i = first; i < end; i++) {
      waiting += fibers[i].state == SIMD;
      same += fibers[i].state == SIMD && fibers[i].site == fibers[first].site;
    }
    if (!waiting) continue;
    current = &fibers[first];
    if (same < LANES) fail(nullptr, "%u of a simdgroup's 32 lanes have come to a simdgroup operation at 0x%zx", same, (size_t)((uintptr_t)fibers[first].site - image_start));
    for (uint i = first; i < end; i++)
      if (fibers[i].said != fibers[first].said) fail(fibers[i].site, "lanes give different arguments to a simdgroup operation");
    for (uint i = first; i < end; i++) fibers[i].state = READY;
    any = true;
  }
  if (any) return true;
  uint waiting = 0, same = 0;
  for (Fiber& f : fibers) {
    waiting += f.state == BARRIER;
    same += f.state == BARRIER && f.site == fibers[0].site;
  }
  if (!waiting) return false;
  current = &fibers[0];
  if (same < fibers.size()) fail(nullptr, "%u of %zu threads have come to a barrier at 0x%zx", same, fibers.size(), (size_t)((uintptr_t)fibers[0].site - image_start));
  for (Fiber& f : fibers) f.state = READY;
  return true;
}

bool run_group() {
  std::vector<int> order(fibers.size());
  for (size_t i = 0; i < order.size(); i++) order[i] = i;
  do {
    std::shuffle(order.begin(), order.end(), random_source);
    for (int i : order) {
      if (fibers[i].state != READY) continue;
      current = &fibers[i];
      swapcontext(&scheduler, &current->context);  // fail() comes back here too
      if (!failure.empty()) return false;
    }
    current = nullptr;
  } while (release());
  current = nullptr;
  return true;
}

int find_image(dl_phdr_info* info, size_t, void*) {
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const auto& h = info->dlpi_phdr[i];
    if (h.p_type != PT_LOAD) continue;
    const uintptr_t start = info->dlpi_addr + h.p_vaddr, end = start + h.p_memsz;
    const uintptr_t here = (uintptr_t)&find_image;
    if (here >= start && here < end) {
      image_start = info->dlpi_addr;
      for (int j = 0; j < info->dlpi_phnum; j++) {
        const auto& k = info->dlpi_phdr[j];
        if (k.p_type == PT_LOAD) image_end = std::max<uintptr_t>(image_end, info->dlpi_addr + k.p_vaddr + k.p_memsz);
      }
      return 1;
    }
  }
  return 0;
}
}  // namespace

const Place& me() { return current->place; }

void* shared(int key, size_t bytes, size_t align) {
  auto found = arrays.find(key);
  if (found == arrays.end()) {
    const size_t at = (arena_used + GUARD + 15) / 16 * 16;
    arena_payload += (bytes + align - 1) / align * align;
    if (arena_payload > LIMIT) fail(__builtin_return_address(0), "more than 32 KiB of threadgroup memory");
    for (size_t i = at; i < at + bytes; i++) {
      shadow[i].inside = true;
      arena[i] = random_source();
    }
    arena_used = at + bytes;
    found = arrays.emplace(key, at).first;
  }
  return arena.data() + found->second;
}

void barrier(int flags, bool simdgroup) {
  const void* site = __builtin_return_address(0);
  const uint before = barriers;
  if (simdgroup) {
    const uint mine = current->place.simdgroup;
    const uint was = simd_barriers[mine];
    wait(SIMD, site);
    if (flags & 2 && simd_barriers[mine] == was) simd_barriers[mine]++;
    return;
  }
  wait(BARRIER, site);
  if (flags & 2 && barriers == before) barriers++;
}

const unsigned char* exchange(const void* mine, size_t bytes) {
  auto& mailbox = slots[current->place.simdgroup][current->met++ % 2];  // nobody gets two ahead
  memcpy(mailbox[current->place.lane], mine, bytes);
  wait(SIMD, __builtin_return_address(0));
  return mailbox[0];
}

void agree(uint64_t what) { current->said = (current->said ^ what) * 0x9E3779B97F4A7C15u; }

float half_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
  uint32_t wide;
  if (exponent == 0) {
    const float small = float(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -small : small;
  }
  wide = exponent == 31 ? 0x7f800000 | mantissa << 13 : (exponent + 112) << 23 | mantissa << 13;
  wide |= sign;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

uint16_t float_to_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint16_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to infinity
  if (bits < 0x38800000) {                       // subnormal: let float addition round
    float magic, small;
    const uint32_t base = 126u << 23;
    memcpy(&magic, &base, 4);
    memcpy(&small, &bits, 4);
    small += magic;
    memcpy(&bits, &small, 4);
    return sign | uint16_t(bits - base);
  }
  return sign | uint16_t((bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13);
}

uint16_t float_to_bfloat(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
}  // namespace emu

// grid, group: in threads, as mx.fast.metal_kernel takes them. Returns 0, or 1 with what is wrong.
extern "C" int emu_run(
    int count, void** bases, const uint64_t* sizes, const int* outputs, const uint* grid,
    const uint* group, uint seed, char* error, size_t error_bytes, uint64_t* counts) {
  using namespace emu;
  dl_iterate_phdr(find_image, nullptr);
  random_source.seed(seed);
  failure.clear();
  buffers.clear();
  writers.assign(count, {});
  for (int i = 0; i < count; i++) {
    buffers.push_back({(char*)bases[i], sizes[i], outputs[i]});
    if (outputs[i]) writers[i].assign(sizes[i], NOBODY);
  }
  arguments = bases;
  loads = stores = 0;
  threads_in_group = group[0] * group[1] * group[2];
  fibers = std::vector<Fiber>(threads_in_group);
  char* stacks = (char*)mmap(nullptr, size_t(STACK) * threads_in_group, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  const Coordinates groups{grid[0] / group[0], grid[1] / group[1], grid[2] / group[2]};
  const int all = groups.x * groups.y * groups.z;
  std::vector<int> order(all);
  for (int i = 0; i < all; i++) order[i] = i;
  std::shuffle(order.begin(), order.end(), random_source);
  for (int number : order) {
    group_number = number;
    const Coordinates g{number % groups.x, number / groups.x % groups.y, number / groups.x / groups.y};
    std::fill(shadow.begin(), shadow.begin() + arena_used, Byte());
    arrays.clear();
    arena_used = arena_payload = 0;
    barriers = 0;
    std::fill(simd_barriers, simd_barriers + 32, 0);
    for (int i = 0; i < threads_in_group; i++) {
      Fiber& f = fibers[i];
      f.stack = stacks + size_t(i) * STACK;
      f.state = READY;
      f.met = f.said = 0;
      const uint u = i, w = group[0], h = group[1];
      const Coordinates t{u % w, u / w % h, u / w / h};
      f.place = {g, t, {g.x * w + t.x, g.y * h + t.y, g.z * group[2] + t.z}, groups, {w, h, group[2]}, u, u % LANES, u / LANES, uint(threads_in_group + LANES - 1) / LANES};
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack;
      f.context.uc_stack.ss_size = STACK;
      f.context.uc_link = nullptr;
      makecontext(&f.context, (void (*)())run_fiber, 1, i);
    }
    if (!run_group()) break;
  }
  current = nullptr;
  const bool watched = loads + stores > 0;  // or it was compiled for AddressSanitizer
  for (int n = 0; n < count && watched && failure.empty(); n++)
    for (size_t i = 0; i < writers[n].size(); i++)
      if (writers[n][i] == NOBODY) {
        failure = "nobody writes byte " + std::to_string(i) + " of output " + std::to_string(n) + " @0x0";
        break;
      }
  munmap(stacks, size_t(STACK) * threads_in_group);
  snprintf(error, error_bytes, "%s", failure.c_str());
  counts[0] = loads;
  counts[1] = stores;
  return !failure.empty();
}

// What -fsanitize=thread calls.
#define EMU_SIZE(n)                                                                                              \
  extern "C" void __tsan_read##n(void* p) { emu::check(p, n, false, n <= 8, __builtin_return_address(0)); }          \
  extern "C" void __tsan_write##n(void* p) { emu::check(p, n, true, n <= 8, __builtin_return_address(0)); }          \
  extern "C" void __tsan_unaligned_read##n(void* p) { emu::check(p, n, false, false, __builtin_return_address(0)); } \
  extern "C" void __tsan_unaligned_write##n(void* p) { emu::check(p, n, true, false, __builtin_return_address(0)); }
EMU_SIZE(1)
EMU_SIZE(2)
EMU_SIZE(4)
EMU_SIZE(8)
EMU_SIZE(16)
extern "C" void __tsan_read_range(void* p, size_t n) { emu::check(p, n, false, false, __builtin_return_address(0)); }
extern "C" void __tsan_write_range(void* p, size_t n) { emu::check(p, n, true, false, __builtin_return_address(0)); }
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}

// What -fsanitize=undefined calls. All begin with where it is: file, line, column.
#define EMU_UNDEFINED(name, what)                                                        \
  extern "C" void __ubsan_handle_##name(const void* data, ...) {                         \
    if (!emu::current) return;                                                           \
    emu::fail(__builtin_return_address(0), "%s", what);                                  \
  }                                                                                      \
  extern "C" void __ubsan_handle_##name##_abort(const void* data, ...) {                 \
    if (!emu::current) return;                                                           \
    emu::fail(__builtin_return_address(0), "%s", what);                                  \
  }
EMU_UNDEFINED(type_mismatch_v1, "uses a pointer that is not aligned for its type, or null")
EMU_UNDEFINED(out_of_bounds, "indexes past the end of an array")
EMU_UNDEFINED(shift_out_of_bounds, "shifts by more bits than the type has")
EMU_UNDEFINED(add_overflow, "overflows in an addition")
EMU_UNDEFINED(sub_overflow, "overflows in a subtraction")
EMU_UNDEFINED(mul_overflow, "overflows in a multiplication")
EMU_UNDEFINED(negate_overflow, "overflows in a negation")
EMU_UNDEFINED(divrem_overflow, "divides by zero, or overflows in a division")
EMU_UNDEFINED(pointer_overflow, "overflows in a pointer")
EMU_UNDEFINED(float_cast_overflow, "converts a float that the integer type does not hold")
EMU_UNDEFINED(load_invalid_value, "reads a bool or enum that is none")
EMU_UNDEFINED(builtin_unreachable, "reaches what cannot be reached")
EMU_UNDEFINED(missing_return, "ends without a return")
EMU_UNDEFINED(invalid_builtin, "gives a builtin what it does not take")
