// y[p] = activation(G[e] x[t], U[e] x[t]) for pairs p of a token t = p / share and an expert e =
// ids[p]. gate, up: blocks of (E, rows, in), of which U begins at row dims[4]; both may be one
// array. biases: (E, out) of the gate, then of up; read if BIASED. limit: one number, of the
// activation. dims: in, out, share, rows, first row of U. Grid: ceil(out / (R NSG)) x pairs.
const uint columns = uint(dims[0]), count = uint(dims[1]), share = uint(dims[2]);
const uint pair = threadgroup_position_in_grid.y, lane = thread_index_in_simdgroup;
const uint first_row = (threadgroup_position_in_grid.x * NSG + simdgroup_index_in_threadgroup) * R;
if (first_row >= count) return;
const ulong row_bytes = ulong(columns / Type::WEIGHTS) * Type::BYTES;
const uint expert = uint(ids[pair]);
const ulong start = ulong(expert) * uint(dims[3]) + first_row;
const uint last_row = count - 1 - first_row;
float gates[R], ups[R];
for (int r = 0; r < R; r++) gates[r] = ups[r] = 0.0f;
dot_rows<Type, R>(
    gate + start * row_bytes, row_bytes, last_row, x + ulong(pair / share) * columns, columns / 32,
    lane, 1.0f, gates);
dot_rows<Type, R>(
    up + (start + uint(dims[4])) * row_bytes, row_bytes, last_row,
    x + ulong(pair / share) * columns, columns / 32, lane, 1.0f, ups);
for (int r = 0; r < R; r++) {
  float g = simd_sum(gates[r]), u = simd_sum(ups[r]);
  if (lane == 0 && first_row + r < count) {
    const ulong at = ulong(expert) * count + first_row + r;
    if (BIASED) {
      g += gate_bias[at];
      u += up_bias[at];
    }
    y[ulong(pair) * count + first_row + r] = static_cast<T>(activated<ACTIVATION>(g, u, limit[0]));
  }
}
