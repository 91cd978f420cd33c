// y[m] = W[e] x[m], where the rows of x come sorted by expert: those of expert e end before ends[e].
// w: blocks of (E, out, in); x: (M, in); dims: in, out, E. 128 threads compute a tile of 32 tokens
// by 64 rows. Grid: ceil(out / 64) x (M / 32 + E) threadgroups: tile y is looked for among the
// experts' own, and those past the last do nothing.
//
// A step multiplies two shares, 64 weights of each row, in the order of the words, and x in the same
// order. Weights are staged as half (11 bits, and |w| < 65504), x as float: bfloat16 may not fit.
const uint ROWS = 64, TOKENS = 32, STEP = 64, PAD = 8, STRIDE = STEP + PAD;
SHARED(half, weights, 64 * (64 + 8));
SHARED(float, tokens, 32 * (64 + 8));
const uint columns = uint(dims[0]), count = uint(dims[1]), experts = uint(dims[2]);
const uint me = thread_index_in_threadgroup, lane = thread_index_in_simdgroup;

uint tile = threadgroup_position_in_grid.y, expert = 0, from = 0, until = 0;
for (; expert < experts; expert++) {
  from = until;
  until = uint(ends[expert]);
  const uint tiles = (until - from + TOKENS - 1) / TOKENS;
  if (tile < tiles) break;
  tile -= tiles;
}
if (expert == experts) return;  // the whole threadgroup
from += tile * TOKENS;
const uint used = until - from < TOKENS ? until - from : TOKENS;
const uint first_row = threadgroup_position_in_grid.x * ROWS;
const uint shares = columns / 32, each = Type::WEIGHTS / 32;
const ulong row_bytes = ulong(columns / Type::WEIGHTS) * Type::BYTES;
const uint row = first_row + me / 2 < count ? first_row + me / 2 : count - 1;
const device uchar* blocks = w + (ulong(expert) * count + row) * row_bytes;

const uint left = 16 * (simdgroup_index_in_threadgroup % 2);   // of a simdgroup: 16 tokens
const uint right = 32 * (simdgroup_index_in_threadgroup / 2);  // by 32 rows
Product sums[4];
for (int i = 0; i < 4; i++) mma_clear(sums[i]);

for (uint step = 0; step < shares; step += 2) {
  const uint mine = step + me % 2;  // of an odd number of shares, the last step has one
  const uint share = mine < shares ? mine : step;
  uint words[8];
  float scales[Type::GROUPS], offsets[Type::GROUPS];
  Type::read(blocks + ulong(share / each) * Type::BYTES, share % each, words, scales, offsets);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  threadgroup half* into = weights + me / 2 * STRIDE + 32 * (me % 2);
#pragma unroll
  for (uint i = 0; i < 32; i++) {
    const uint group = i / (32 / Type::GROUPS);
    const float weight = scales[group] * float(words[i / 4] >> 8 * (i % 4) & 0xff) + offsets[group];
    into[i] = static_cast<half>(mine < shares ? weight : 0.0f);
  }
#pragma unroll
  for (uint i = 0; i < 4; i++) {  // four numbers of x each, four times
    const uint quad = me % 16, token = me / 16 + 8 * i;
    const uint own = step + quad / 8, of = own < shares ? own : step;
    const uint at = Type::WEIGHTS * (of / each) + Type::first(of % each, quad % 8);
    const uint source = from + (token < used ? token : 0);
    const device T* four = x + ulong(source) * columns + at;
    for (uint j = 0; j < 4; j++)
      tokens[token * STRIDE + 4 * quad + j] = own < shares ? float(four[j]) : 0.0f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
  for (uint k = 0; k < STEP; k += 8) {
    Left a;
    mma_load(a, tokens + left * STRIDE + k, STRIDE, lane);
#pragma unroll
    for (uint i = 0; i < 4; i++) {
      Right b;
      mma_load(b, weights + (right + 8 * i) * STRIDE + k, STRIDE, lane);
      mma_add(sums[i], a, b);
    }
  }
}

threadgroup_barrier(mem_flags::mem_threadgroup);  // the sums go where the tokens were
for (uint i = 0; i < 4; i++)
  mma_store(sums[i], tokens + left * STRIDE + right + 8 * i, STRIDE, lane);
threadgroup_barrier(mem_flags::mem_threadgroup);
for (uint i = me; i < TOKENS * ROWS; i += 128) {
  const uint token = i / ROWS, column = first_row + i % ROWS;
  if (token < used && column < count)
    y[ulong(from + token) * count + column] = static_cast<T>(tokens[token * STRIDE + i % ROWS]);
}
