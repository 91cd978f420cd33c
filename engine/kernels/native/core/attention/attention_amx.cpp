// One token's attention over 8-bit keys and values, which are multiplied in the cache layout.
//
// Queries and weights must also be 8-bit. Each is split into a high and a low byte. For up to 8
// query heads, these fill rows (or columns) 0..7 and 8..15 of a tile. This preserves 15 bits, so
// only the cache's own rounding matters.
#include "attention/attention_amx.h"

#include "isa/amx.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__AMX_INT8__)

#include "isa/simd.h"

namespace conifer::attention {

using namespace isa;  // vectors and tiles

namespace {

constexpr int64_t BLOCK = 64;  // tokens
constexpr int64_t GROUP = 32;  // values per scale
constexpr int HEADS = 8;
constexpr float LOW_STEPS = 254.0f;  // steps of the low byte per step of the high byte
constexpr float LOWEST = -3.0e38f;

// Tiles: 0, 1 sums; 2 keys (16 tokens, 32 bytes); 3 queries (8 quads of dims, 16 columns);
// 4 weights (16 rows, 64 tokens); 5 values (16 quads of tokens, 16 dims).
TileConfig tile_config() {
  TileConfig config;
  const int columns[] = {64, 64, 32, 64, 64, 64}, rows[] = {16, 16, 16, 8, 16, 16};
  for (int i = 0; i < 6; ++i) config.shape(i, rows[i], columns[i]);
  return config;
}

// The scratch memory for one call, divided into arrays. Axes: c scale groups, t tokens of a block,
// g heads.
struct Room {
  float *query_scales, *weights, *scales, *value_scales, *mixed;
  int32_t* sums;
  int8_t *queries, *bytes, *quads, *key_tail, *value_tail;

  Room(float* scratch, int64_t key_dim, int64_t value_dim) {
    char* at = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(scratch) + 63) & ~63ull);
    const auto take = [&at]<class T>(T*& part, int64_t count) {
      part = reinterpret_cast<T*>(at);
      at += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    };
    take(query_scales, key_dim / GROUP * 16);  // (c, 16) the size of each column's steps
    take(queries, key_dim * 16);               // (c, 8 quads of dims, 16 columns, 4)
    take(weights, HEADS * BLOCK);              // (g, t)
    take(scales, BLOCK * (key_dim > value_dim ? key_dim : value_dim) / GROUP);  // (t, c)
    take(value_scales, value_dim / GROUP * BLOCK);                              // (c, t)
    take(sums, key_dim / GROUP * 256 + 512);
    take(bytes, 16 * BLOCK);          // weights: rows g and 8 + g
    take(quads, GROUP * BLOCK);       // values of a group: two tiles
    take(mixed, HEADS * value_dim);   // (g, dims in the order of the tiles' columns)
    take(key_tail, BLOCK * key_dim);  // copy of a partial block
    take(value_tail, BLOCK * value_dim);
  }
};

// Split 16 numbers in -127..127 into integers and multiples of 1 / LOW_STEPS.
CONIFER_INLINE void split(__m512 x, __m512i& high, __m512i& low) {
  high = _mm512_cvtps_epi32(x);
  low = _mm512_cvtps_epi32(
      _mm512_mul_ps(_mm512_sub_ps(x, _mm512_cvtepi32_ps(high)), _mm512_set1_ps(LOW_STEPS)));
}

void load_queries(const float* queries, int64_t stride, int64_t heads, int64_t dims,
                  const Room& room) {
  for (int64_t c = 0; c < dims / GROUP; ++c) {
    int8_t* tile = room.queries + c * GROUP * 16;
    for (int64_t g = 0; g < HEADS; ++g) {
      const float* q = queries + g * stride + c * GROUP;
      __m512 x[2] = {}, top = {};
      if (g < heads)
        for (int i = 0; i < 2; ++i) {
          x[i] = _mm512_loadu_ps(q + 16 * i);
          top = _mm512_max_ps(top, _mm512_abs_ps(x[i]));
        }
      float most = _mm512_reduce_max_ps(top);
      if (_mm512_cmp_ps_mask(x[0], x[1], _CMP_UNORD_Q)) most = __builtin_nanf("");
      const bool counts = most > 1e-35f && most <= __FLT_MAX__;
      const float step = most / 127.0f;
      const __m512 inverse = _mm512_set1_ps(counts ? 127.0f / most : 0.0f);
      if (!counts) x[0] = x[1] = _mm512_setzero_ps();
      int8_t bytes[2][GROUP];
      for (int i = 0; i < 2; ++i) {
        __m512i high, low;
        split(_mm512_mul_ps(x[i], inverse), high, low);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes[0] + 16 * i),
                         _mm512_cvtsepi32_epi8(high));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes[1] + 16 * i), _mm512_cvtsepi32_epi8(low));
      }
      for (int64_t quad = 0; quad < GROUP / 4; ++quad)
        for (int part = 0; part < 2; ++part)
          memcpy(tile + quad * 64 + (part * 8 + g) * 4, bytes[part] + quad * 4, 4);
      room.query_scales[c * 16 + g] = step;
      room.query_scales[c * 16 + 8 + g] = step / LOW_STEPS;
    }
  }
}

void load_scales(const uint16_t* halves, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(out + i, load_half(halves + i));
  for (; i < count; ++i) out[i] = quant::f16_to_float(halves[i]);
}

// Write the scores for a whole block to room.weights.
void score(const int8_t* keys, int64_t dims, const Room& room, const int8_t* next) {
  const int64_t groups = dims / GROUP;
  for (int64_t t = 0; t < BLOCK; t += 16) {
    for (int64_t c = 0; c < groups; ++c) {
      _tile_zero(0);
      _tile_loadd(2, keys + t * dims + c * GROUP, dims);
      _tile_loadd(3, room.queries + c * GROUP * 16, 64);
      _tile_dpbssd(0, 2, 3);
      _tile_stored(0, room.sums + c * 256, 64);
    }
    for (int64_t i = 0; i < 16 * dims; i += 64) __builtin_prefetch(next + t * dims + i);
    VF rows[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) rows[j] = fill(0.0f);
    for (int64_t c = 0; c < groups; ++c) {
      const VF steps = load(room.query_scales + c * 16);
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j) {
        const VF sums = (VF)_mm512_cvtepi32_ps(_mm512_load_si512(room.sums + c * 256 + j * 16));
        rows[j] = rows[j] + sums * (steps * room.scales[(t + j) * groups + c]);
      }
    }
    transpose(rows);
    for (int g = 0; g < HEADS; ++g) store(room.weights + g * BLOCK + t, rows[g] + rows[g + 8]);
  }
}

// Transpose (t, c) to (c, t) and divide by the largest in the group. Returns that value / 127.
float turn_scales(const float* scales, int64_t groups, int64_t c, float* out) {
  const __m512i index =
      _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                         _mm512_set1_epi32(int(groups)));
  __m512 top = _mm512_setzero_ps(), parts[4];
  for (int i = 0; i < 4; ++i) {
    parts[i] = _mm512_i32gather_ps(index, scales + 16 * i * groups + c, 4);
    top = _mm512_max_ps(top, parts[i]);
  }
  const float most = _mm512_reduce_max_ps(top);
  const __m512 inverse = _mm512_set1_ps(most > 0.0f ? 127.0f / most : 0.0f);
  for (int i = 0; i < 4; ++i) _mm512_storeu_ps(out + 16 * i, _mm512_mul_ps(parts[i], inverse));
  return most / 127.0f;
}

// Convert 64 integers in four vectors to bytes, in order.
CONIFER_INLINE __m512i pack(const __m512i* v) {
  const __m512i words[2] = {_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3])};
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(words[0], words[1]));
}

// Multiply weights by the values' scales and convert the products to bytes.
void load_weights(const Room& room, int64_t c) {
  for (int g = 0; g < HEADS; ++g) {
    __m512i high[4], low[4];
    for (int i = 0; i < 4; ++i)
      split(_mm512_mul_ps(_mm512_loadu_ps(room.weights + g * BLOCK + 16 * i),
                          _mm512_loadu_ps(room.value_scales + c * BLOCK + 16 * i)),
            high[i], low[i]);
    _mm512_store_si512(room.bytes + g * BLOCK, pack(high));
    _mm512_store_si512(room.bytes + (8 + g) * BLOCK, pack(low));
  }
}

// Store 32 dims of 64 tokens as two tiles of quads, where byte i of a column is token 4 quad + i.
// Interleaving puts the columns in the order that `dim_of` returns.
void load_quads(const int8_t* values, int64_t dims, int8_t* quads) {
  for (int64_t t = 0; t < BLOCK; t += 8) {
    __m512i rows[4];
    for (int i = 0; i < 4; ++i) {
      const __m256i* low = reinterpret_cast<const __m256i*>(values + (t + i) * dims);
      const __m256i* high = reinterpret_cast<const __m256i*>(values + (t + 4 + i) * dims);
      rows[i] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(low)),
                                   _mm256_loadu_si256(high), 1);
    }
    const __m512i ab[2] = {_mm512_unpacklo_epi8(rows[0], rows[1]),
                           _mm512_unpackhi_epi8(rows[0], rows[1])};
    const __m512i cd[2] = {_mm512_unpacklo_epi8(rows[2], rows[3]),
                           _mm512_unpackhi_epi8(rows[2], rows[3])};
    for (int j = 0; j < 2; ++j) {
      const __m512i low = _mm512_unpacklo_epi16(ab[j], cd[j]);
      const __m512i high = _mm512_unpackhi_epi16(ab[j], cd[j]);
      int8_t* tile = quads + j * 1024 + t / 4 * 64;
      _mm512_store_si512(tile, _mm512_shuffle_i64x2(low, high, 0x44));
      _mm512_store_si512(tile + 64, _mm512_shuffle_i64x2(low, high, 0xee));
    }
  }
}

// Which dim of a group is in a column of tile j.
CONIFER_INLINE int dim_of(int j, int column) {
  const int half = column / 8, lane = column / 4 % 2, i = column % 4;
  return 16 * lane + 8 * j + 4 * half + i;
}

// mixed = mixed * factors + the block's weighted values.
void mix(const int8_t* values, int64_t dims, const Room& room, const float* factors,
         const float* worth, const int8_t* next) {
  for (int64_t c = 0; c < dims / GROUP; ++c) {
    load_weights(room, c);
    load_quads(values + c * GROUP, dims, room.quads);
    _tile_zero(0);
    _tile_zero(1);
    _tile_loadd(4, room.bytes, 64);
    _tile_loadd(5, room.quads, 64);
    _tile_dpbssd(0, 4, 5);
    _tile_loadd(5, room.quads + 1024, 64);
    _tile_dpbssd(1, 4, 5);
    _tile_stored(0, room.sums, 64);
    _tile_stored(1, room.sums + 256, 64);
    for (int64_t i = c * BLOCK * GROUP; i < (c + 1) * BLOCK * GROUP; i += 64)
      __builtin_prefetch(next + i);
    for (int j = 0; j < 2; ++j)
      for (int g = 0; g < HEADS; ++g) {
        const int32_t* sums = room.sums + j * 256 + g * 16;
        const VF high = (VF)_mm512_cvtepi32_ps(_mm512_load_si512(sums));
        const VF low = (VF)_mm512_cvtepi32_ps(_mm512_load_si512(sums + 8 * 16));
        float* mixed = room.mixed + g * dims + c * GROUP + j * 16;
        store(mixed, load(mixed) * factors[g] + (high + low * (1.0f / LOW_STEPS)) * worth[c]);
      }
  }
}

// For up to 8 heads.
void attend_heads(const HeadView& head, const float* queries, int64_t heads, int64_t begin,
                  int64_t end, Partial partial, const Room& room) {
  const int64_t key_dim = head.key_dim, value_dim = head.value_dim;
  const int64_t key_groups = key_dim / GROUP, value_groups = value_dim / GROUP;
  const int64_t query_stride = padded(key_dim), mixed_stride = padded(value_dim);
  load_queries(queries, query_stride, heads, key_dim, room);
  for (int64_t i = 0; i < HEADS * value_dim; i += 16) store(room.mixed + i, fill(0.0f));
  VF totals[HEADS];
  float tops[HEADS], factors[HEADS], worth[64];
  for (int g = 0; g < HEADS; ++g) {
    tops[g] = LOWEST;
    totals[g] = fill(0.0f);
  }
  for (int64_t t = begin; t < end; t += BLOCK) {
    const int64_t n = end - t < BLOCK ? end - t : BLOCK;
    const int8_t* keys = static_cast<const int8_t*>(head.keys) + t * key_dim;
    const int8_t* values = static_cast<const int8_t*>(head.values) + t * value_dim;
    const int8_t* next_keys = keys + BLOCK * key_dim;
    if (n < BLOCK) {  // whole tiles are read, but memory may end here
      keys = static_cast<int8_t*>(memcpy(room.key_tail, keys, size_t(n * key_dim)));
      values = static_cast<int8_t*>(memcpy(room.value_tail, values, size_t(n * value_dim)));
      memset(room.key_tail + n * key_dim, 0, size_t((BLOCK - n) * key_dim));
      memset(room.value_tail + n * value_dim, 0, size_t((BLOCK - n) * value_dim));
      memset(room.scales, 0, size_t(BLOCK * key_groups) * 4);
    }
    load_scales(head.key_scales + t * key_groups, n * key_groups, room.scales);
    score(keys, key_dim, room, values);
    for (int g = 0; g < HEADS; ++g) {
      float* weights = room.weights + g * BLOCK;
      for (int64_t i = n; i < BLOCK; ++i) weights[i] = LOWEST;
      const VF most = larger(larger(load(weights), load(weights + 16)),
                             larger(load(weights + 32), load(weights + 48)));
      const float block_top = _mm512_reduce_max_ps((__m512)most);
      const float top = block_top > tops[g] ? block_top : tops[g];
      factors[g] = top == tops[g] ? 1.0f : exponential(fill(tops[g] - top))[0];
      tops[g] = top;
      totals[g] = totals[g] * factors[g];
      for (int64_t i = 0; i < BLOCK; i += 16) {
        const VF weight = exponential(load(weights + i) - top);
        totals[g] = totals[g] + weight;
        store(weights + i, weight);
      }
    }
    if (n < BLOCK) memset(room.scales, 0, size_t(BLOCK * value_groups) * 4);
    load_scales(head.value_scales + t * value_groups, n * value_groups, room.scales);
    for (int64_t c = 0; c < value_groups; ++c)
      worth[c] = turn_scales(room.scales, value_groups, c, room.value_scales + c * BLOCK);
    mix(values, value_dim, room, factors, worth, next_keys);
  }
  for (int64_t g = 0; g < heads; ++g) {
    partial.top[g] = tops[g];
    partial.total[g] = _mm512_reduce_add_ps((__m512)totals[g]);
    float* out = partial.mixed + g * mixed_stride;
    for (int64_t i = 0; i < value_dim; ++i)
      out[i / GROUP * GROUP + dim_of(int(i % GROUP / 16), int(i % 16))] =
          room.mixed[g * value_dim + i];
  }
}

}  // namespace

bool amx_serves(const HeadView& head) {
  return head.type == CacheType::Q8 && head.key_dim % GROUP == 0 && head.value_dim % GROUP == 0 &&
         head.value_stride == head.value_dim && head.value_dim <= 64 * GROUP;
}

int64_t amx_scratch(int64_t key_dim, int64_t value_dim) {
  const int64_t widest = key_dim > value_dim ? key_dim : value_dim;
  return (BLOCK * (key_dim + value_dim) + key_dim * 16 + GROUP * BLOCK + 16 * BLOCK) / 4 +
         key_dim / GROUP * (16 + 256) + HEADS * BLOCK + BLOCK * widest / GROUP +
         value_dim / GROUP * BLOCK + 512 + HEADS * value_dim + 12 * 16;
}

void attend_one_amx(const HeadView& head, const float* queries, int64_t group, int64_t begin,
                    int64_t end, Partial partial, float* scratch) {
  const Room room(scratch, head.key_dim, head.value_dim);
  configure(tile_config());
  const int64_t query_stride = padded(head.key_dim);
  const int64_t mixed_stride = padded(head.value_dim);
  for (int64_t g = 0; g < group; g += HEADS)
    attend_heads(head, queries + g * query_stride, group - g < HEADS ? group - g : HEADS, begin,
                 end, {partial.top + g, partial.total + g, partial.mixed + g * mixed_stride}, room);
  _tile_release();
}

}  // namespace conifer::attention

#else

namespace conifer::attention {

bool amx_serves(const HeadView&) { return false; }
int64_t amx_scratch(int64_t, int64_t) { return 0; }
void attend_one_amx(const HeadView&, const float*, int64_t, int64_t, int64_t, Partial, float*) {}

}  // namespace conifer::attention

#endif
