// Products and row lookups for a weight, as tasks.
#include "weight.h"

#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

namespace conifer {

namespace {

// Rows grouped by expert: order[starts[e]] .. order[starts[e + 1] - 1] belong to expert e.
struct Groups {
  std::vector<int32_t> order;
  std::vector<int64_t> starts;
};

int32_t checked(int32_t id, int64_t count) {
  const int64_t index = id < 0 ? id + count : id;
  if (index < 0 || index >= count)
    throw std::out_of_range("index " + std::to_string(id) + " is out of range for a weight with " +
                            std::to_string(count) + " rows or experts");
  return static_cast<int32_t>(index);
}

Groups group(const int32_t* ids, int64_t n, int64_t experts) {
  Groups groups{std::vector<int32_t>(n), std::vector<int64_t>(experts + 1, 0)};
  for (int64_t i = 0; i < n; ++i) ++groups.starts[checked(ids[i], experts) + 1];
  std::partial_sum(groups.starts.begin(), groups.starts.end(), groups.starts.begin());
  std::vector<int64_t> next(groups.starts.begin(), groups.starts.end() - 1);
  for (int64_t i = 0; i < n; ++i)
    groups.order[next[checked(ids[i], experts)]++] = static_cast<int32_t>(i);
  return groups;
}

// Call fn(expert, its matrix) on every thread for each expert that has rows.
template <class F>
void each_expert(const Weight& w, const Groups& groups, const std::vector<int32_t>& used,
                 Tokens kind, int thread, int threads, F&& fn) {
  Pool& pool = Pool::shared();
  if (!w.store) {
    for (const int32_t e : used) fn(e, w.matrix(e));
    return;
  }
  const auto with_address = [&](int64_t i, const store::Addresses& at) {
    const int32_t e = used[static_cast<size_t>(i)];
    Matrix matrix = w.matrix(e);
    matrix.data = at[static_cast<size_t>(w.part)];
    fn(e, matrix);
  };
  const unsigned parts = 1u << w.part;
  const bool one = kind == Tokens::Single;
  const auto count = static_cast<int64_t>(used.size());
  if (thread == 0) {
    std::vector<int32_t> last;
    for (const int32_t e : used) last.push_back(groups.order[groups.starts[e + 1] - 1]);
    if (one) w.store->choose(w.layer, used.data(), count, w.store->first_part(w.layer) == w.part);
    else w.store->plan(w.layer, used.data(), last.data(), count, {parts}, threads);
  }
  pool.barrier();
  if (one) w.store->each_chosen(parts, thread, with_address);
  else w.store->each_planned(0, thread, with_address);
  pool.barrier();
  if (thread == 0) w.store->finish();
}

// x (pairs / per_row, cols) or (pairs, cols), ids (pairs,) -> y (pairs, rows).
void gather(const Weight& w, const float* x, const int32_t* ids, int64_t pairs, int64_t per_row,
            Tokens kind, float* y) {
  const Groups groups = group(ids, pairs, w.experts);
  std::vector<int32_t> tokens(pairs);
  for (int64_t i = 0; i < pairs; ++i) tokens[i] = static_cast<int32_t>(groups.order[i] / per_row);
  std::vector<float> sorted(pairs * w.rows);
  std::vector<int32_t> used;
  for (int32_t e = 0; e < w.experts; ++e)
    if (groups.starts[e] < groups.starts[e + 1]) used.push_back(e);
  Shared& all = shared();
  const std::lock_guard<std::mutex> lock(all.mutex);
  Pool& pool = Pool::shared();
  all.activations.prepare(x, pairs / per_row, w.cols, w.cols);
  pool.run([&](int thread, int threads) {
    if (!is_float(w.type)) all.activations.quantize(thread, threads);
    pool.barrier();
    const Range part = share(w.rows, thread, threads);
    each_expert(w, groups, used, kind, thread, threads, [&](int32_t e, const Matrix& matrix) {
      const int64_t start = groups.starts[e], n = groups.starts[e + 1] - start;
      if (part.end > part.begin)
        matmul_rows(matrix, all.activations, kind, tokens.data() + start, n,
                    sorted.data() + start * w.rows, w.rows, part.begin, part.end);
    });
    pool.barrier();
    const Range mine = share(pairs, thread, threads, 1);
    for (int64_t i = mine.begin; i < mine.end; ++i)
      std::memcpy(y + groups.order[i] * w.rows, sorted.data() + i * w.rows, 4 * w.rows);
  });
}

bool decodes(int64_t tokens) { return tokens == 1 && !prompt_step(); }

}  // namespace

mx::array matmul(const mx::array& x, const Weight& w) {
  const int64_t tokens = x.shape(0);
  const Tokens kind = decodes(tokens) ? Tokens::Single : Tokens::Prompt;
  return launch("Matmul", {x}, {x.shape(0), static_cast<int>(w.rows)},
                [w, tokens, kind](const Sources& in, const Targets& out) {
                  if (tokens == 0) return;
                  Shared& all = shared();
                  const std::lock_guard<std::mutex> lock(all.mutex);
                  matmul(w.matrix(), static_cast<const float*>(in[0]), tokens,
                         static_cast<float*>(out[0]), Pool::shared(), all.activations, kind);
                });
}

mx::array gather_matmul(const mx::array& x, const mx::array& ids, const Weight& w) {
  const int64_t pairs = ids.size(), per_row = x.shape(1) == 1 ? ids.shape(1) : 1;
  const Tokens kind = decodes(ids.shape(0)) ? Tokens::Single : routed(ids.shape(0));
  return launch("GatherMatmul", {x, ids}, {ids.shape(0), ids.shape(1), static_cast<int>(w.rows)},
                [w, pairs, per_row, kind](const Sources& in, const Targets& out) {
                  if (pairs == 0) return;
                  gather(w, static_cast<const float*>(in[0]), static_cast<const int32_t*>(in[1]),
                         pairs, per_row, kind, static_cast<float*>(out[0]));
                });
}

mx::array rows(const mx::array& ids, const Weight& w) {
  const int64_t n = ids.size();
  return launch("Rows", {ids}, {ids.shape(0), static_cast<int>(w.cols)},
                [w, n](const Sources& in, const Targets& out) {
                  auto* given = static_cast<const int32_t*>(in[0]);
                  std::vector<int32_t> ids(given, given + n);
                  for (int32_t& id : ids) id = checked(id, w.rows);
                  dequantize_rows(w.matrix(), ids.data(), n, static_cast<float*>(out[0]));
                });
}

}  // namespace conifer
