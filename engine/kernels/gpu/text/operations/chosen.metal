// y[p] = W[ids[p]] x[p / share], for pairs p of a token and an expert. w: blocks of (E, out, in);
// dims: in, out, share: how many pairs have the same x. Grid: ceil(out / (R NSG)) x pairs.
const uint columns = uint(dims[0]), count = uint(dims[1]), share = uint(dims[2]);
const uint pair = threadgroup_position_in_grid.y;
const uint first_row = (threadgroup_position_in_grid.x * NSG + simdgroup_index_in_threadgroup) * R;
if (first_row >= count) return;
const ulong row_bytes = ulong(columns / Type::WEIGHTS) * Type::BYTES;
const ulong start = (ulong(ids[pair]) * count + first_row) * row_bytes;
float sums[R];
for (int r = 0; r < R; r++) sums[r] = 0.0f;
dot_rows<Type, R>(
    w + start, row_bytes, count - 1 - first_row, x + ulong(pair / share) * columns, columns / 32,
    thread_index_in_simdgroup, 1.0f, sums);
for (int r = 0; r < R; r++) {
  const float sum = simd_sum(sums[r]);
  if (thread_index_in_simdgroup == 0 && first_row + r < count)
    y[ulong(pair) * count + first_row + r] = static_cast<T>(sum);
}
