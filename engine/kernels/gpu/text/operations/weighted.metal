// y[t] = the sum over j of scores[t, j] (W[ids[t, j]] x[t, j] + bias[ids[t, j]]). w: blocks of
// (E, out, in); x: (T, k, in); bias: (E, out), read if BIASED; dims: in, out, k. Grid: ceil(out /
// (R NSG)) x T threadgroups.
const uint columns = uint(dims[0]), count = uint(dims[1]), used = uint(dims[2]);
const uint token = threadgroup_position_in_grid.y, lane = thread_index_in_simdgroup;
const uint first_row = (threadgroup_position_in_grid.x * NSG + simdgroup_index_in_threadgroup) * R;
if (first_row >= count) return;
const ulong row_bytes = ulong(columns / Type::WEIGHTS) * Type::BYTES;
float sums[R];
for (int r = 0; r < R; r++) sums[r] = 0.0f;
for (uint j = 0; j < used; j++) {
  const uint pair = token * used + j, expert = uint(ids[pair]);
  dot_rows<Type, R>(
      w + (ulong(expert) * count + first_row) * row_bytes, row_bytes, count - 1 - first_row,
      x + ulong(pair) * columns, columns / 32, lane, scores[pair], sums);
  if (BIASED && lane == 0)
    for (int r = 0; r < R; r++)
      if (first_row + r < count)
        sums[r] += scores[pair] * bias[ulong(expert) * count + first_row + r];
}
for (int r = 0; r < R; r++) {
  const float sum = simd_sum(sums[r]);
  if (lane == 0 && first_row + r < count)
    y[ulong(token) * count + first_row + r] = static_cast<T>(sum);
}
