// The Python module `_native`. It checks nothing that engine/kernels/native has checked already.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <mutex>
#include <tuple>
#include <vector>

#include "core/gemm/matmul.h"
#include "core/isa/isa.h"
#include "layers.h"
#include "core/blocks/pick.h"
#include "recurrent.h"
#include "weight.h"

namespace nb = nanobind;
namespace mx = mlx::core;

namespace {

using namespace conifer;
using Blocks = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A stream's thread may be the last to drop a weight, without the interpreter's lock and unable to
// wait for it: whoever holds the lock may be waiting for that thread. So what it drops is left to
// the main thread.
class Dropped {
 public:
  void add(PyObject* object) {
    const std::lock_guard<std::mutex> lock(mutex_);
    objects_.push_back(object);
    if (!asked_) asked_ = Py_AddPendingCall(&Dropped::clear, this) == 0;
  }

 private:
  static int clear(void* self) {
    auto* dropped = static_cast<Dropped*>(self);
    std::vector<PyObject*> objects;
    {
      const std::lock_guard<std::mutex> lock(dropped->mutex_);
      objects.swap(dropped->objects_);
      dropped->asked_ = false;
    }
    for (PyObject* object : objects) Py_DECREF(object);
    return 0;
  }

  std::mutex mutex_;
  std::vector<PyObject*> objects_;
  bool asked_ = false;
};

std::shared_ptr<const void> keep(nb::handle object) {
  static auto* dropped = new Dropped;
  return {object.inc_ref().ptr(),
          [](const void* p) { dropped->add(static_cast<PyObject*>(const_cast<void*>(p))); }};
}

Weight make_weight(nb::object buffer, int type, int64_t experts, int64_t rows, int64_t cols) {
  const auto blocks = nb::cast<Blocks>(buffer);
  const Weight weight{keep(buffer), blocks.data(), static_cast<Type>(type), experts, rows, cols};
  if (static_cast<int64_t>(blocks.size()) < experts * rows * row_bytes(weight.type, cols))
    throw nb::value_error("the blocks end before the weight does");
  return weight;
}

using MaybeArray = std::optional<mx::array>;

struct PyRope {
  Vector periods;
  Rope rope;
};

// Collects what a layer points into, and gives out the pointers.
class Kept {
 public:
  const float* vector(const MaybeArray& values) {
    vectors.emplace_back(values);
    return vectors.back().data();
  }
  Matrix matrix(const Weight* weight) {
    if (!weight) return {};
    weights.push_back(*weight);
    return weight->matrix();
  }
  Matrix matrix(const Weight& weight) { return matrix(&weight); }
  Rope rope(const PyRope* rope) {
    if (!rope) return {nullptr, 0, false, 1.0f};
    vectors.push_back(rope->periods);
    return rope->rope;
  }

  std::vector<Weight> weights;
  std::vector<Vector> vectors;
};

using Columns = std::tuple<int64_t, int64_t, int64_t>;
using Heads = std::tuple<int64_t, int64_t>;

void add_recurrent(Stack& self, const mx::array& norm, float eps, const std::vector<Weight>& inputs,
                   const Weight& output, const mx::array& taps, const MaybeArray& bias,
                   int64_t mixed_at, int64_t gate_at, const Columns& step,
                   const std::optional<Columns>& beta, const mx::array& step_bias,
                   const mx::array& rate, const MaybeArray& skip, int64_t q_at, int64_t k_at,
                   int64_t v_at, const Heads& heads, const Heads& key_heads, int64_t width,
                   int64_t values, const mx::array& gated_norm, bool gate_first,
                   float residual) {
  Kept kept;
  const auto columns = [](const Columns& from) {
    const auto [first, group, apart] = from;
    return HeadColumns{first, group, apart};
  };
  const auto [a, b] = heads;
  const auto [key_a, key_b] = key_heads;
  RecurrentLayer layer{};
  layer.norm = {kept.vector(norm), eps};
  for (const Weight& input : inputs) layer.inputs[layer.input_count++] = kept.matrix(input);
  layer.output = kept.matrix(output);
  layer.taps = kept.vector(taps), layer.bias = kept.vector(bias);
  layer.kernel = taps.shape(0), layer.channels = taps.shape(1);
  layer.mixed_at = mixed_at, layer.gate_at = gate_at;
  layer.step = columns(step);
  layer.delta = beta.has_value();
  if (beta) layer.beta = columns(*beta);
  layer.step_bias = kept.vector(step_bias), layer.rate = kept.vector(rate);
  layer.skip = kept.vector(skip);
  layer.q_at = q_at, layer.k_at = k_at, layer.v_at = v_at;
  layer.a = a, layer.b = b, layer.key_heads = key_a * key_b;
  layer.key_step_a = key_a > 1 ? key_b : 0, layer.key_step_b = key_b > 1 ? 1 : 0;
  layer.width = width, layer.values = values;
  layer.length_eps = eps;
  layer.gated_norm = {kept.vector(gated_norm), eps};
  layer.norm_weights = gated_norm.shape(0);
  layer.norm_rows = layer.inner() / gated_norm.shape(1);
  layer.gate_first = gate_first;
  layer.residual = residual;
  self.add(layer, kept.weights, kept.vectors);
}

// Bytes of the caches as arrays, each of which keeps them.
using Bytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;

std::vector<Bytes> views(nb::object caches, const std::vector<Caches::Part>& parts) {
  std::vector<Bytes> found;
  for (const Caches::Part& part : parts) {
    const size_t shape[] = {static_cast<size_t>(part.bytes)};
    found.push_back(Bytes(part.data, 1, shape, caches));
  }
  return found;
}

void bind_layers(nb::module_& m) {
  nb::class_<Caches>(m, "Caches")
      .def("__init__",
           [](Caches* self,
              const std::vector<std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>>& layers,
              const std::vector<std::tuple<int64_t, int64_t>>& states, int64_t capacity, int type,
              int64_t rewind) {
             std::vector<CacheShape> shapes;
             for (const auto& [heads, key_dim, value_dim, window, slots] : layers)
               shapes.push_back({heads, key_dim, value_dim, window, slots});
             std::vector<StateShape> state_shapes;
             for (const auto& [tail, memory] : states) state_shapes.push_back({tail, memory});
             new (self)
                 Caches(shapes, state_shapes, capacity, static_cast<CacheType>(type), rewind);
           })
      .def_prop_ro("capacity", &Caches::capacity)
      .def_prop_ro("state_bytes", &Caches::state_bytes)
      .def("reach", &Caches::reach)
      .def("undo", &Caches::undo)
      .def_prop_ro("slots", &Caches::slots)
      .def_prop_rw("bases", &Caches::bases, &Caches::set_bases)
      .def_prop_rw("marks", &Caches::marks, &Caches::set_marks)
      .def("memory",
           [](nb::object self) { return views(self, nb::cast<const Caches&>(self).memory()); })
      .def("states",
           [](nb::object self) { return views(self, nb::cast<const Caches&>(self).states()); });

  nb::class_<PyRope>(m, "Rope")
      .def("__init__", [](PyRope* self, const mx::array& periods, bool interleaved,
                          float magnitude) {
        const Vector kept{periods};
        const int64_t dims = 2 * static_cast<int64_t>(periods.size());
        new (self) PyRope{kept, {kept.data(), dims, interleaved, magnitude}};
      });

  nb::class_<Stack>(m, "Stack")
      .def(nb::init<>())
      .def_prop_ro("bytes", &Stack::bytes)
      .def_prop_ro("done", &Stack::done)
      .def("give_up", &Stack::give_up)
      .def(
          "add_attention",
          [](Stack& self, const mx::array& norm, float eps, const Weight& q, const Weight& k,
             const Weight& v, const Weight& output, const MaybeArray& q_bias,
             const MaybeArray& k_bias, const MaybeArray& v_bias, const MaybeArray& output_bias,
             const MaybeArray& q_norm, const MaybeArray& k_norm, bool gated, bool whole_norms,
             bool norms_last, const PyRope* rope, const MaybeArray& sinks, int64_t heads,
             int64_t kv_heads,
             int64_t key_dim, int64_t value_dim, int64_t window, float scale, float residual) {
            Kept kept;
            const AttentionLayer layer{.norm = {kept.vector(norm), eps},
                                       .q = kept.matrix(q),
                                       .k = kept.matrix(k),
                                       .v = kept.matrix(v),
                                       .output = kept.matrix(output),
                                       .q_bias = kept.vector(q_bias),
                                       .k_bias = kept.vector(k_bias),
                                       .v_bias = kept.vector(v_bias),
                                       .output_bias = kept.vector(output_bias),
                                       .q_norm = {kept.vector(q_norm), eps},
                                       .k_norm = {kept.vector(k_norm), eps},
                                       .gated = gated,
                                       .whole_norms = whole_norms,
                                       .norms_last = norms_last,
                                       .rope = kept.rope(rope),
                                       .sinks = kept.vector(sinks),
                                       .heads = heads,
                                       .kv_heads = kv_heads,
                                       .key_dim = key_dim,
                                       .value_dim = value_dim,
                                       .window = window,
                                       .scale = scale,
                                       .residual = residual};
            self.add(layer, kept.weights, kept.vectors);
          },
          nb::kw_only(), nb::arg("norm"), nb::arg("eps"), nb::arg("q"), nb::arg("k"), nb::arg("v"),
          nb::arg("output"), nb::arg("q_bias").none(), nb::arg("k_bias").none(),
          nb::arg("v_bias").none(), nb::arg("output_bias").none(), nb::arg("q_norm").none(),
          nb::arg("k_norm").none(), nb::arg("gated"), nb::arg("whole_norms"),
          nb::arg("norms_last"), nb::arg("rope").none(),
          nb::arg("sinks").none(), nb::arg("heads"), nb::arg("kv_heads"), nb::arg("key_dim"),
          nb::arg("value_dim"), nb::arg("window"), nb::arg("scale"), nb::arg("residual"))
      .def(
          "add_latent",
          [](Stack& self, const mx::array& norm, float eps, const Weight* q_a,
             const MaybeArray& q_norm, const Weight& q, const Weight& kv_a,
             const mx::array& kv_norm, float latent_eps, const Weight& k_b, const Weight& v_b,
             const Weight& output, const PyRope& rope, int64_t heads, float scale,
             float residual) {
            Kept kept;
            const LatentLayer layer{.norm = {kept.vector(norm), eps},
                                    .q_a = kept.matrix(q_a),
                                    .q_norm = {kept.vector(q_norm), latent_eps},
                                    .q = kept.matrix(q),
                                    .kv_a = kept.matrix(kv_a),
                                    .kv_norm = {kept.vector(kv_norm), latent_eps},
                                    .k_b = kept.matrix(k_b),
                                    .v_b = kept.matrix(v_b),
                                    .output = kept.matrix(output),
                                    .rope = kept.rope(&rope),
                                    .heads = heads,
                                    .scale = scale,
                                    .residual = residual};
            self.add(layer, kept.weights, kept.vectors);
          },
          nb::kw_only(), nb::arg("norm"), nb::arg("eps"), nb::arg("q_a").none(),
          nb::arg("q_norm").none(), nb::arg("q"), nb::arg("kv_a"), nb::arg("kv_norm"),
          nb::arg("latent_eps"), nb::arg("k_b"), nb::arg("v_b"), nb::arg("output"),
          nb::arg("rope"), nb::arg("heads"), nb::arg("scale"), nb::arg("residual"))
      .def("add_recurrent", &add_recurrent, nb::kw_only(), nb::arg("norm"), nb::arg("eps"),
           nb::arg("inputs"), nb::arg("output"), nb::arg("taps"), nb::arg("bias").none(),
           nb::arg("mixed_at"), nb::arg("gate_at"), nb::arg("step"), nb::arg("beta").none(),
           nb::arg("step_bias"), nb::arg("rate"), nb::arg("skip").none(), nb::arg("q_at"),
           nb::arg("k_at"), nb::arg("v_at"), nb::arg("heads"), nb::arg("key_heads"),
           nb::arg("width"), nb::arg("values"), nb::arg("gated_norm"), nb::arg("gate_first"),
           nb::arg("residual"))
      .def(
          "add_dense",
          [](Stack& self, const mx::array& norm, float eps, const Weight& gate, const Weight& up,
             const Weight& down, float residual) {
            Kept kept;
            const DenseLayer layer{.norm = {kept.vector(norm), eps},
                                   .gate = kept.matrix(gate),
                                   .up = kept.matrix(up),
                                   .down = kept.matrix(down),
                                   .residual = residual};
            self.add(layer, kept.weights, kept.vectors);
          },
          nb::kw_only(), nb::arg("norm"), nb::arg("eps"), nb::arg("gate"), nb::arg("up"),
          nb::arg("down"), nb::arg("residual"))
      .def(
          "add_experts",
          [](Stack& self, const mx::array& norm, float eps, const Weight& router,
             const Weight& gate, const Weight& up, const Weight& down,
             const MaybeArray& router_bias, const MaybeArray& gate_bias,
             const MaybeArray& up_bias, const MaybeArray& down_bias, int activation, int gating,
             const MaybeArray& selection_bias, int64_t used, int64_t groups, int64_t groups_used,
             bool renormalize, float scale, const Weight* shared_gate, const Weight* shared_up,
             const Weight* shared_down, const MaybeArray& shared_score, float residual) {
            Kept kept;
            const Routing routing{.experts = gate.experts,
                                  .used = used,
                                  .renormalize = renormalize,
                                  .scale = scale,
                                  .gating = static_cast<Gating>(gating),
                                  .bias = kept.vector(selection_bias),
                                  .groups = groups,
                                  .groups_used = groups_used};
            const ExpertLayer layer{.norm = {kept.vector(norm), eps},
                                    .router = kept.matrix(router),
                                    .gate = kept.matrix(gate),
                                    .up = kept.matrix(up),
                                    .down = kept.matrix(down),
                                    .routing = routing,
                                    .activation = static_cast<Activation>(activation),
                                    .router_bias = kept.vector(router_bias),
                                    .gate_bias = kept.vector(gate_bias),
                                    .up_bias = kept.vector(up_bias),
                                    .down_bias = kept.vector(down_bias),
                                    .shared_gate = kept.matrix(shared_gate),
                                    .shared_up = kept.matrix(shared_up),
                                    .shared_down = kept.matrix(shared_down),
                                    .shared_score = kept.vector(shared_score),
                                    .residual = residual};
            self.add(layer, kept.weights, kept.vectors);
          },
          nb::kw_only(), nb::arg("norm"), nb::arg("eps"), nb::arg("router"), nb::arg("gate"),
          nb::arg("up"), nb::arg("down"), nb::arg("router_bias").none(),
          nb::arg("gate_bias").none(), nb::arg("up_bias").none(), nb::arg("down_bias").none(),
          nb::arg("activation"), nb::arg("gating"), nb::arg("selection_bias").none(),
          nb::arg("used"), nb::arg("groups"), nb::arg("groups_used"), nb::arg("renormalize"),
          nb::arg("scale"), nb::arg("shared_gate").none(), nb::arg("shared_up").none(),
          nb::arg("shared_down").none(), nb::arg("shared_score").none(), nb::arg("residual"))
      .def("run", &Stack::run, nb::arg("x"), nb::arg("caches").none(), nb::arg("offset"))
      .def("run_and_tell", &Stack::run_and_tell, nb::arg("x"), nb::arg("caches").none(),
           nb::arg("offset"));

  nb::class_<HeadLayer>(m, "Head")
      .def("__init__",
           [](HeadLayer* self, const mx::array& norm, float eps, const Weight& output) {
             new (self) HeadLayer(Vector(norm), eps, output);
           })
      .def("run", &HeadLayer::run);
}

}  // namespace

NB_MODULE(_native, m) {
  // A model that lives until the end of the program is no leak worth a word on stderr.
  nb::set_leak_warnings(false);
  m.def("block_types", [] {
    std::vector<std::tuple<int, std::string, int64_t, int64_t>> types;
    for (const BlockType& type : BLOCK_TYPES)
      types.emplace_back(static_cast<int>(type.type), type.name, type.weights, type.bytes);
    return types;
  });
  m.def("isa", [] {
    return std::string(isa::name(isa::current())) + (tiles_in_use() ? ", AMX" : "");
  });
  m.def("set_threads", [](int threads) {
    const std::lock_guard<std::mutex> lock(shared().mutex);  // tasks count on what they began with
    Pool::shared().set_threads(threads);
  }, nb::call_guard<nb::gil_scoped_release>());

  nb::class_<Weight>(m, "Weight").def("__init__", [](Weight* self, nb::object buffer, int type,
                                                     int64_t experts, int64_t rows, int64_t cols) {
    new (self) Weight(make_weight(std::move(buffer), type, experts, rows, cols));
  });
  m.def("matmul", [](const mx::array& x, const Weight& w) { return matmul(x, w); });
  m.def("gather_matmul", &gather_matmul);
  m.def("rows", &rows);
  m.def("convolve", [](const mx::array& x, const mx::array& tail, const mx::array& taps,
                       const MaybeArray& bias, bool activate) {
    const auto made = convolve(x, tail, taps, bias, activate);
    return std::make_tuple(made[0], made[1]);
  }, nb::arg("x"), nb::arg("tail"), nb::arg("taps"), nb::arg("bias").none(), nb::arg("activate"));
  m.def("scan", [](const mx::array& q, const mx::array& k, const mx::array& v,
                   const mx::array& log_decay, const mx::array& state, const MaybeArray& beta,
                   float eps) {
    const auto made = scan(q, k, v, log_decay, state, beta, eps);
    return std::make_tuple(made[0], made[1]);
  }, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("log_decay"), nb::arg("state"),
     nb::arg("beta").none(), nb::arg("eps"));
  m.def("gated_norm", [](const mx::array& y, const mx::array& gate, const mx::array& weight,
                         float eps, bool gate_first) {
    return gated_norm(y, gate, weight, eps, gate_first);
  }, nb::arg("y"), nb::arg("gate"), nb::arg("weight"), nb::arg("eps"), nb::arg("gate_first"));
  m.def(
      "latent_attention",
      [](const mx::array& q, const mx::array& rows, const MaybeArray& scales, int64_t value_dim) {
        return latent_attention(q, rows, scales, value_dim);
      },
      nb::arg("q"), nb::arg("rows"), nb::arg("scales").none(), nb::arg("value_dim"));
  m.def("pick", [](const mx::array& logits, float temperature, int64_t top_k, float top_p,
                   float min_p, double uniform) {
    const int64_t n = static_cast<int64_t>(logits.size());
    const Drawing how{temperature, top_k, top_p, min_p};
    return launch("Pick", {logits}, {{{}, mx::int32}},
                  [n, how, uniform](const Sources& in, const Targets& out) {
                    *static_cast<int32_t*>(out[0]) =
                        pick(static_cast<const float*>(in[0]), n, how, uniform);
                  })[0];
  }, nb::arg("logits"), nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"),
     nb::arg("min_p"), nb::arg("uniform"));
  m.def("ready", [](const mx::array& x) { return x.is_available(); });
  bind_layers(m);
}
