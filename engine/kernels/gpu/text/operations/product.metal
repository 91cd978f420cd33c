// y[t] = W x[t]. w: blocks of (out, in); x: (T, in); dims: in, out. R rows of a simdgroup and NSG
// simdgroups of a threadgroup are template arguments. Grid: ceil(out / (R NSG)) x T threadgroups.
const uint columns = uint(dims[0]), count = uint(dims[1]);
const uint token = threadgroup_position_in_grid.y;
const uint first_row = (threadgroup_position_in_grid.x * NSG + simdgroup_index_in_threadgroup) * R;
if (first_row >= count) return;  // a whole simdgroup
const ulong row_bytes = ulong(columns / Type::WEIGHTS) * Type::BYTES;
float sums[R];
for (int r = 0; r < R; r++) sums[r] = 0.0f;
dot_rows<Type, R>(
    w + first_row * row_bytes, row_bytes, count - 1 - first_row, x + ulong(token) * columns,
    columns / 32, thread_index_in_simdgroup, 1.0f, sums);
for (int r = 0; r < R; r++) {
  const float sum = simd_sum(sums[r]);
  if (thread_index_in_simdgroup == 0 && first_row + r < count)
    y[ulong(token) * count + first_row + r] = static_cast<T>(sum);
}
