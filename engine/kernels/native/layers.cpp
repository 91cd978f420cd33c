// Layer stacks.
#include "layers.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "core/blocks/latent.h"

namespace conifer {

Vector::Vector(const std::optional<mx::array>& values) : values_(values) {
  if (!values_) return;
  values_->eval();
  if (values_->dtype() != mx::float32 || !values_->flags().row_contiguous)
    throw std::invalid_argument("a layer's vector must be contiguous float32");
}

void Stack::add(const Layer& layer, const std::vector<Weight>& weights,
                const std::vector<Vector>& vectors, Place base, Place to, int lender) {
  all_->layers.push_back({layer, base, to, lender});
  all_->weights.insert(all_->weights.end(), weights.begin(), weights.end());
  all_->vectors.insert(all_->vectors.end(), vectors.begin(), vectors.end());
}

int64_t Stack::bytes() const {
  int64_t sum = 0;
  for (const Weight& weight : all_->weights)
    sum += weight.experts * weight.rows * row_bytes(weight.type, weight.cols);
  return sum;
}

ExpertStore* Stack::All::store() const {
  for (const Entry& entry : layers)
    if (const auto* experts = std::get_if<ExpertLayer>(&entry.layer))
      if (experts->store) return experts->store;
  return nullptr;
}

double Stack::done() const {
  return static_cast<double>(all_->done) / static_cast<double>(all_->layers.size());
}

Caches Stack::new_caches(int64_t capacity, CacheType type, int64_t rewind, int64_t slack) const {
  std::vector<CacheShape> shapes;
  std::vector<StateShape> states;
  for (const Entry& entry : all_->layers) {
    if (const auto* attention = std::get_if<AttentionLayer>(&entry.layer)) {
      if (entry.lender >= 0) continue;
      const int64_t window = attention->window;
      shapes.push_back({attention->kv_heads, attention->key_dim, attention->value_dim, window,
                        window ? std::min(capacity, window + slack) : capacity});
    } else if (const auto* latent = std::get_if<LatentLayer>(&entry.layer)) {
      shapes.push_back({1, latent->kv_a.rows, latent->indexer.k.rows, 0, capacity});
    } else if (const auto* recurrent = std::get_if<RecurrentLayer>(&entry.layer)) {
      states.push_back({recurrent->tail_values(), recurrent->state_values()});
    } else if (const auto* conv = std::get_if<ConvLayer>(&entry.layer)) {
      states.push_back({conv->tail_values(), 0});
    }
  }
  return Caches(shapes, states, capacity, type, rewind);
}

mx::array Stack::run(const mx::array& x, Caches* caches, int64_t offset,
                     const std::optional<mx::array>& embedded) const {
  return launch_all(x, caches, offset, embedded, std::nullopt)[0];
}

std::pair<mx::array, mx::array> Stack::run_with_routes(
    const mx::array& x, Caches* caches, int64_t offset,
    const std::optional<mx::array>& embedded) const {
  int routed = 0, used = 0;
  for (const Entry& entry : all_->layers)
    if (const auto* experts = std::get_if<ExpertLayer>(&entry.layer))
      ++routed, used = static_cast<int>(experts->routing.used);
  const auto made =
      launch_all(x, caches, offset, embedded, Output{{routed, x.shape(0), used}, mx::int32});
  return {made[0], made.back()};
}

namespace {

// The layer with the rotary embedding for a context.
AttentionLayer for_context(const AttentionLayer& layer, int64_t context) {
  AttentionLayer made = layer;
  if (layer.long_rope.dims && context > layer.long_from) made.rope = layer.long_rope;
  return made;
}

bool has_cache(const Stack::Layer& layer) {
  return std::holds_alternative<AttentionLayer>(layer) ||
         std::holds_alternative<LatentLayer>(layer);
}

// Some of a run's tokens, with the caches that they see.
struct Piece {
  int64_t at, tokens;
  std::optional<Caches::Step> caches;
};

// One run of a stack's layers: called with each of them in turn. Experts take all tokens at once,
// the other layers one piece after the other.
struct Run {
  Workspace& work;
  const std::vector<Piece>& pieces;
  int64_t offset, tokens, width;
  int64_t context;    // tokens that the caches are made for
  const float* from;  // the stream: the input, then y
  float* y;
  float* aside;
  Given embedded;
  int32_t* chosen;  // null: not recorded
  Pool& pool = Pool::shared();
  Place base_at = Place::Stream, to = Place::Stream;  // of the current layer
  int lender = -1;
  size_t caches_used = 0, states_used = 0;

  void operator()(const AttentionLayer& layer) {
    const AttentionLayer made = for_context(layer, context);
    const float* added = base();
    each_piece([&](const Piece& piece, int64_t first) {
      attention_block(made, cache(piece), offset + piece.at, from + first, piece.tokens,
                      target() + first, work, pool, added + first);
    });
    use_cache();
  }
  void operator()(const LatentLayer& layer) {
    each_piece([&](const Piece& piece, int64_t first) {
      latent_block(layer, cache(piece), offset + piece.at, from + first, piece.tokens, y + first,
                   work, pool);
    });
    use_cache();
  }
  void operator()(const RecurrentLayer& layer) {
    each_piece([&](const Piece& piece, int64_t first) {
      recurrent_block(layer, states(piece), from + first, piece.tokens, y + first, work, pool);
    });
    ++states_used;
  }
  void operator()(const ConvLayer& layer) {
    each_piece([&](const Piece& piece, int64_t first) {
      conv_block(layer, states(piece), from + first, piece.tokens, y + first, work, pool);
    });
    ++states_used;
  }
  void operator()(const DenseLayer& layer) {
    const float* added = base();
    each_piece([&](const Piece& piece, int64_t first) {
      const Given given{embedded.values ? embedded.values + piece.at * embedded.stride : nullptr,
                        embedded.stride};
      dense_block(layer, from + first, piece.tokens, target() + first, work, pool, added + first,
                  given);
    });
  }
  void operator()(const ExpertLayer& layer) {
    moe_block(layer, from, tokens, target(), work, pool, chosen, base());
    if (chosen) chosen += tokens * layer.routing.used;
  }
  void operator()(const EndLayer& layer) {
    each_piece([&](const Piece& piece, int64_t first) {
      end_block(layer, from + first, aside + first, piece.tokens, width, y + first, work, pool);
    });
  }

  // Call fn(piece, its first value in the stream).
  template <class F>
  void each_piece(F&& fn) const {
    for (const Piece& piece : pieces) fn(piece, piece.at * width);
  }

  float* target() const { return to == Place::Stream ? y : aside; }
  const float* base() const {
    if (base_at == Place::Nothing) std::fill(aside, aside + tokens * width, 0.0f);
    return base_at == Place::Stream ? from : aside;
  }
  const KVCache* cache(const Piece& piece) const {
    const std::optional<Caches::Step>& caches = piece.caches;
    if (!caches) return nullptr;
    if (lender >= 0) return &caches->layers[static_cast<size_t>(lender)];
    caches->make_room(caches_used, offset + piece.at);
    return &caches->layers[caches_used];
  }
  void skip(const Stack::Layer& layer) {
    if (has_cache(layer)) {
      each_piece([&](const Piece& piece, int64_t) { cache(piece); });
      use_cache();
    } else if (const auto* experts = std::get_if<ExpertLayer>(&layer); experts && chosen) {
      chosen = std::fill_n(chosen, tokens * experts->routing.used, 0);
    }
  }
  void use_cache() {
    if (lender < 0) ++caches_used;
  }
  RecurrentStates states(const Piece& piece) const {
    return piece.caches ? piece.caches->recurrent(states_used) : RecurrentStates{};
  }
};

}  // namespace

std::vector<mx::array> Stack::launch_all(const mx::array& x, Caches* caches, int64_t offset,
                                         const std::optional<mx::array>& embedded,
                                         const std::optional<Output>& routes) const {
  const int64_t tokens = x.shape(0), width = x.shape(1);
  all_->done = 0;
  std::vector<mx::array> inputs{x};
  if (embedded) inputs.push_back(*embedded);
  if (caches && caches->ticket) inputs.push_back(*caches->ticket);
  ExpertStore* const experts = all_->store();
  std::vector<Piece> pieces;
  for (int64_t at = 0; at < tokens || pieces.empty();) {
    const int64_t whole = BLOCK_TOKENS - (offset + at) % BLOCK_TOKENS;
    const int64_t count = experts && caches ? std::min(whole, tokens - at) : tokens;
    pieces.push_back({at, count, std::nullopt});
    if (caches) pieces.back().caches = caches->step(offset + at, count);
    at += count;
  }
  const int64_t context = caches ? caches->capacity() : offset + tokens;
  const int64_t columns = embedded ? embedded->shape(1) : 0;
  const bool prompt = prompt_step();
  const int64_t number = experts ? experts->begin_run() : 0;
  auto body = [all = all_, experts, number, pieces, tokens, width, offset, context, columns,
               prompt](const Sources& in, const Targets& out) {
    Shared& tools = shared();
    const std::lock_guard<std::mutex> lock(tools.mutex);
    tools.work.prompt = prompt;
    tools.work.first_block = pieces.size() > 1 ? pieces[0].tokens : 0;
    *static_cast<uint8_t*>(out[1]) = 0;
    const auto sums_aside = [](const Entry& entry) { return entry.to == Place::Aside; };
    const bool any = std::any_of(all->layers.begin(), all->layers.end(), sums_aside);
    std::vector<float> aside(static_cast<size_t>(any ? tokens * width : 0));
    Run run{.work = tools.work,
            .pieces = pieces,
            .offset = offset,
            .tokens = tokens,
            .width = width,
            .context = context,
            .from = static_cast<const float*>(in[0]),
            .y = static_cast<float*>(out[0]),
            .aside = aside.data(),
            .embedded = {columns ? static_cast<const float*>(in[1]) : nullptr, columns},
            .chosen = out.size() > 2 ? static_cast<int32_t*>(out[2]) : nullptr};
    all->done = 0;
    for (const Entry& entry : all->layers) {
      run.base_at = entry.base, run.to = entry.to, run.lender = entry.lender;
      if (all->cancelled || (experts && experts->stopped())) {  // but keep the caches consistent
        run.skip(entry.layer);
        continue;
      }
      std::visit(run, entry.layer);
      all->done.fetch_add(1, std::memory_order_relaxed);
      if (entry.to == Place::Stream) run.from = run.y;  // the next layers run in place
    }
    tools.work.first_block = 0;
    if (experts) experts->end_run(number);
  };
  std::vector<Output> outputs{{x.shape(), mx::float32}, {{1}, mx::uint8}};
  if (routes) outputs.push_back(*routes);
  auto made = launch("Layers", std::move(inputs), outputs, std::move(body));
  if (caches) caches->ticket = made[1];
  return made;
}

mx::array latent_attention_task(const mx::array& q, const mx::array& rows,
                                const std::optional<mx::array>& scales, int64_t value_dim) {
  LatentCall call{};
  call.type = scales                        ? CacheType::Q8
              : rows.dtype() == mx::float16 ? CacheType::F16
                                            : CacheType::F32;
  call.tokens = q.shape(0), call.heads = q.shape(1), call.key_dim = q.shape(2);
  call.length = rows.shape(0), call.value_dim = value_dim;
  call.decodes = call.tokens == 1 && !prompt_step();
  std::vector<mx::array> inputs{q, rows};
  if (scales) inputs.push_back(*scales);
  return launch("LatentAttention", std::move(inputs),
                {q.shape(0), q.shape(1), static_cast<int>(value_dim)},
                [call](const Sources& in, const Targets& out) mutable {
                  Shared& tools = shared();
                  const std::lock_guard<std::mutex> lock(tools.mutex);
                  call.queries = static_cast<const float*>(in[0]);
                  call.rows = in[1];
                  call.scales = in.size() > 2 ? static_cast<const uint16_t*>(in[2]) : nullptr;
                  call.out = static_cast<float*>(out[0]);
                  latent_attention(call, tools.work, Pool::shared());
                });
}

HeadLayer::HeadLayer(const Norm& norm, const std::vector<Vector>& vectors, const Weight& output)
    : vectors_(vectors), output_(output), head_{norm, output_.matrix()} {}

mx::array HeadLayer::run(const mx::array& x) const {
  const int64_t tokens = x.shape(0);
  return launch("Head", {x}, {x.shape(0), static_cast<int>(output_.rows)},
                [kept = *this, tokens](const Sources& in, const Targets& out) {
                  Shared& tools = shared();
                  const std::lock_guard<std::mutex> lock(tools.mutex);
                  head_block(kept.head_, static_cast<const float*>(in[0]), tokens,
                             static_cast<float*>(out[0]), tools.work, Pool::shared());
                });
}

}  // namespace conifer
