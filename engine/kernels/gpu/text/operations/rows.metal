// y[i] = row ids[i] of W, as numbers: for embeddings, and for products that MLX's own matmul makes.
// w: blocks of (rows, in); dims: in. Grid: ceil(in / 1024) x count threadgroups of 32 threads, a
// thread to a share.
const uint columns = uint(dims[0]);
const uint share = 32 * threadgroup_position_in_grid.x + thread_index_in_threadgroup;
const uint row = threadgroup_position_in_grid.y;
if (share >= columns / 32) return;
const uint block = share / (Type::WEIGHTS / 32), part = share % (Type::WEIGHTS / 32);
const ulong row_bytes = ulong(columns / Type::WEIGHTS) * Type::BYTES;
uint words[8];
float scales[Type::GROUPS], offsets[Type::GROUPS];
Type::read(
    w + ulong(ids[row]) * row_bytes + ulong(block) * Type::BYTES, part, words, scales, offsets);
for (uint i = 0; i < 32; i++) {
  const uint group = i / (32 / Type::GROUPS);
  const float weight = scales[group] * float(words[i / 4] >> 8 * (i % 4) & 0xff) + offsets[group];
  const ulong at = ulong(Type::WEIGHTS) * block + Type::first(part, i / 4) + i % 4;
  y[ulong(row) * columns + at] = static_cast<T>(weight);
}
