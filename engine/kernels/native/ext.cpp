// The Python module `_native`. engine/kernels/native checks all shapes before calling it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <mutex>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/blocks/pick.h"
#include "core/gemm/matmul.h"
#include "core/isa/isa.h"
#include "guard.h"
#include "layers.h"
#include "recurrent.h"
#include "stream.h"
#include "weight.h"

namespace nb = nanobind;
namespace mx = mlx::core;

namespace {

using namespace conifer;
using Blocks = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;
using MaybeArray = std::optional<mx::array>;

// Python objects to release. The last reference to a weight may be dropped on a stream's thread.
// That thread does not hold the interpreter lock and must not wait for it, because the lock's
// holder may be waiting for the thread. The main thread releases the objects instead.
class ReleaseQueue {
 public:
  void add(PyObject* object) {
    const std::lock_guard<std::mutex> lock(mutex_);
    objects_.push_back(object);
    if (!pending_) pending_ = Py_AddPendingCall(&ReleaseQueue::clear, this) == 0;
  }

 private:
  static int clear(void* self) {
    auto* queue = static_cast<ReleaseQueue*>(self);
    std::vector<PyObject*> objects;
    {
      const std::lock_guard<std::mutex> lock(queue->mutex_);
      objects.swap(queue->objects_);
      queue->pending_ = false;
    }
    for (PyObject* object : objects) Py_DECREF(object);
    return 0;
  }

  std::mutex mutex_;
  std::vector<PyObject*> objects_;
  bool pending_ = false;
};

std::shared_ptr<const void> keep_alive(nb::handle object) {
  static auto* queue = new ReleaseQueue;
  return {object.inc_ref().ptr(),
          [](const void* p) { queue->add(static_cast<PyObject*>(const_cast<void*>(p))); }};
}

Weight make_weight(nb::object buffer, int type, int64_t experts, int64_t rows, int64_t cols,
                   const std::optional<std::vector<float>>& scales) {
  const auto blocks = nb::cast<Blocks>(buffer);
  if (scales && static_cast<int64_t>(scales->size()) != experts)
    throw nb::value_error("a weight needs one scale for each expert");
  const Weight weight{keep_alive(buffer),
                      blocks.data(),
                      static_cast<Type>(type),
                      experts,
                      rows,
                      cols,
                      scales ? std::make_shared<const std::vector<float>>(*scales) : nullptr};
  if (static_cast<int64_t>(blocks.size()) < experts * rows * row_bytes(weight.type, cols))
    throw nb::value_error("the buffer is smaller than the weight");
  return weight;
}

// A mapped file, watched for lost pages. Belongs to the mapping, which must outlive it.
struct Watch {
  explicit Watch(const Blocks& mapped) : number(watch(mapped.data(), mapped.size())) {
    if (number < 0) throw std::runtime_error("cannot watch another mapped file");
  }
  Watch(const Watch&) = delete;
  ~Watch() { unwatch(number); }

  int number;
};

// A rotary embedding, with the periods it points to.
struct OwnedRope {
  OwnedRope(const mx::array& array, bool interleaved, float magnitude)
      : periods(array),
        rope{periods.data(), 2 * static_cast<int64_t>(array.size()), interleaved, magnitude} {}

  Vector periods;
  Rope rope;
};

// Weight, eps, bias, and whether it subtracts the mean.
using PyNorm = std::optional<std::tuple<mx::array, float, MaybeArray, bool>>;
using PyLinear = std::pair<Weight, MaybeArray>;  // weight, bias
using Linear = std::tuple<Matrix&, const float*&>;

// The Python type for a field.
template <class T>
struct PyType {
  using type = T;
};
template <>
struct PyType<Matrix> {
  using type = const Weight&;
};
template <>
struct PyType<const float*> {
  using type = const MaybeArray&;
};
template <>
struct PyType<Norm> {
  using type = const PyNorm&;
};
template <>
struct PyType<Rope> {
  using type = const OwnedRope&;
};
template <>
struct PyType<Linear> {
  using type = const PyLinear&;
};

// A layer under construction, with the weights and vectors that its fields point to.
template <class L>
struct LayerBuilder {
  L layer{};
  std::vector<Weight> weights;
  std::vector<Vector> vectors;

  template <class T>
  T convert(T value) {
    return value;
  }
  Matrix convert(const Weight& weight) {
    weights.push_back(weight);
    return weight.matrix();
  }
  const float* convert(const MaybeArray& values) {
    vectors.emplace_back(values);
    return vectors.back().data();
  }
  Norm convert(const PyNorm& norm) {
    if (!norm) return Norm{};
    const auto& [weight, eps, bias, centred] = *norm;
    return {convert(MaybeArray(weight)), eps, convert(bias), centred};
  }
  Rope convert(const OwnedRope& rope) {
    vectors.push_back(rope.periods);
    return rope.rope;
  }
  std::tuple<Matrix, const float*> convert(const PyLinear& linear) {
    return {convert(linear.first), convert(linear.second)};
  }
};

template <class Find>
struct Field {
  const char* name;
  Find find;  // in a layer
};
#define FIELD_AT(name, path)                               \
  Field {                                                  \
    #name, [](auto& layer) -> auto& { return layer.path; } \
  }
#define FIELD(name) FIELD_AT(name, name)
#define LINEAR(name)                                                           \
  Field {                                                                      \
    #name, [](auto& layer) { return std::tie(layer.name, layer.name##_bias); } \
  }

// Bind a layer's fields as write-only properties. `Stack.add` accepts the resulting class.
template <class L, class... Finds>
nb::class_<LayerBuilder<L>> bind_layer(nb::module_& m, nb::class_<Stack>& stack, const char* name,
                                       Field<Finds>... fields) {
  using Builder = LayerBuilder<L>;
  nb::class_<Builder> type(m, name);
  const auto bind = [&](auto field) {
    using T = std::remove_reference_t<decltype(field.find(std::declval<L&>()))>;
    type.def_prop_rw(field.name, nullptr,
                     [find = field.find](Builder& builder, typename PyType<T>::type value) {
                       find(builder.layer) = builder.convert(value);
                     });
  };
  type.def(nb::init<>());
  (bind(fields), ...);
  stack.def(
      "add",
      [](Stack& self, const Builder& builder, Place base, Place to, int lender) {
        self.add(builder.layer, builder.weights, builder.vectors, base, to, lender);
      },
      nb::arg("layer"), nb::arg("base") = Place::Stream, nb::arg("to") = Place::Stream,
      nb::arg("lender") = -1);
  return type;
}

// Views of a cache's memory. Each view keeps the cache alive.
std::vector<Bytes> views(nb::object caches, const std::vector<Caches::Part>& parts) {
  std::vector<Bytes> found;
  for (const Caches::Part& part : parts) {
    const size_t shape[] = {static_cast<size_t>(part.bytes)};
    found.push_back(Bytes(part.data, 1, shape, caches));
  }
  return found;
}

void bind_caches(nb::module_& m) {
  nb::enum_<CacheType>(m, "CacheType")
      .value("f16", CacheType::F16)
      .value("f32", CacheType::F32)
      .value("q8", CacheType::Q8);
  nb::class_<Caches>(m, "Caches")
      .def_prop_ro("capacity", &Caches::capacity)
      .def_prop_ro("state_bytes", &Caches::state_bytes)
      .def("rewindable_length", &Caches::rewindable_length)
      .def("undo", &Caches::undo)
      .def_prop_ro("slots", &Caches::slots)
      .def_prop_rw("bases", &Caches::bases, &Caches::set_bases)
      .def_prop_rw("marks", &Caches::marks, &Caches::set_marks)
      .def("buffers",
           [](nb::object self) { return views(self, nb::cast<const Caches&>(self).buffers()); })
      .def("states",
           [](nb::object self) { return views(self, nb::cast<const Caches&>(self).states()); });
}

void bind_layers(nb::module_& m) {
  nb::enum_<Activation>(m, "Activation")
      .value("silu", Activation::Silu)
      .value("clamped", Activation::Clamped)
      .value("gelu", Activation::Gelu)
      .value("capped", Activation::Capped);
  nb::enum_<Gate>(m, "Gate").value("sigmoid", Gate::Sigmoid).value("softplus", Gate::Softplus);
  nb::enum_<Place>(m, "Place")
      .value("stream", Place::Stream)
      .value("aside", Place::Aside)
      .value("nothing", Place::Nothing);
  nb::enum_<Gating>(m, "Gating")
      .value("softmax", Gating::Softmax)
      .value("sigmoid", Gating::Sigmoid)
      .value("softmax_of_chosen", Gating::SoftmaxOfChosen)
      .value("sparse_mixer", Gating::SparseMixer);
  nb::class_<OwnedRope>(m, "Rope").def(nb::init<const mx::array&, bool, float>());
  nb::class_<Temperature>(m, "Temperature").def(nb::init<float, int64_t, int64_t>());
  nb::class_<HeadColumns>(m, "HeadColumns").def(nb::init<int64_t, int64_t, int64_t>());
  nb::class_<Stack> stack(m, "Stack");
  stack.def(nb::init<>())
      .def_prop_ro("bytes", &Stack::bytes)
      .def_prop_ro("done", &Stack::done)
      .def("cancel", &Stack::cancel)
      .def("new_caches", &Stack::new_caches)
      .def("run", &Stack::run, nb::arg("x"), nb::arg("caches").none(), nb::arg("offset"),
           nb::arg("embedded").none())
      .def("run_with_routes", &Stack::run_with_routes, nb::arg("x"), nb::arg("caches").none(),
           nb::arg("offset"), nb::arg("embedded").none());
  bind_layer<AttentionLayer>(
      m, stack, "AttentionLayer", FIELD(norm), FIELD(residual), LINEAR(q), LINEAR(k), LINEAR(v),
      LINEAR(output), FIELD(q_norm), FIELD(k_norm), FIELD(gated), FIELD(whole_norms),
      FIELD(norms_last), FIELD(rope), FIELD(sinks), FIELD(heads), FIELD(kv_heads), FIELD(key_dim),
      FIELD(value_dim), FIELD(window), FIELD(scale), FIELD(post_norm), FIELD(v_norm), FIELD(gate),
      FIELD(gate_kind), FIELD(long_rope), FIELD(long_from), FIELD(chunked), FIELD(score_cap),
      FIELD(temperature));
  bind_layer<LatentLayer>(m, stack, "LatentLayer", FIELD(norm), FIELD(residual), FIELD(q_a),
                          FIELD(q_norm), FIELD(q), FIELD(kv_a), FIELD(kv_norm), FIELD(k_b),
                          FIELD(v_b), FIELD(output), FIELD(rope), FIELD(gate), FIELD(heads),
                          FIELD(scale), FIELD(temperature), FIELD_AT(index_q, indexer.q),
                          FIELD_AT(index_k, indexer.k), FIELD_AT(index_weights, indexer.weights),
                          FIELD_AT(index_norm, indexer.k_norm), FIELD_AT(index_rope, indexer.rope),
                          FIELD_AT(index_heads, indexer.heads), FIELD_AT(index_top, indexer.top));
  bind_layer<RecurrentLayer>(
      m, stack, "RecurrentLayer", FIELD(norm), FIELD(residual), FIELD(output), FIELD(taps),
      FIELD(bias), FIELD(kernel), FIELD(channels), FIELD(mixed_at), FIELD(gate_at), FIELD(step),
      FIELD(beta), FIELD(step_bias), FIELD(rate), FIELD(skip), FIELD(q_at), FIELD(k_at),
      FIELD(v_at), FIELD(a), FIELD(b), FIELD(key_heads), FIELD(key_step_a), FIELD(key_step_b),
      FIELD(width), FIELD(values), FIELD(delta), FIELD(length_eps), FIELD(gated_norm),
      FIELD(norm_rows), FIELD(norm_weights), FIELD(gate_first), FIELD(sigmoid_gate),
      FIELD(by_channel), FIELD(bound), FIELD(step_b), FIELD(gate_b))
      .def_prop_rw("inputs", nullptr,
                   [](LayerBuilder<RecurrentLayer>& builder, const std::vector<Weight>& inputs) {
                     RecurrentLayer& layer = builder.layer;
                     for (const Weight& input : inputs)
                       layer.inputs.push_back(builder.convert(input));
                   });
  bind_layer<DenseLayer>(m, stack, "DenseLayer", FIELD(norm), FIELD(residual), FIELD(gate),
                         FIELD(up), FIELD(down), FIELD(activation), FIELD(limit), FIELD(post_norm),
                         FIELD(given_at));
  bind_layer<ConvLayer>(m, stack, "ConvLayer", FIELD(norm), FIELD(residual), FIELD(input),
                        FIELD(output), FIELD(taps), FIELD(kernel));
  bind_layer<EndLayer>(m, stack, "EndLayer", FIELD(norm), FIELD(scale));
  bind_layer<ExpertLayer>(
      m, stack, "ExpertLayer", FIELD(norm), FIELD(residual), LINEAR(router), LINEAR(gate),
      LINEAR(up), LINEAR(down), FIELD(activation), FIELD_AT(experts, routing.experts),
      FIELD_AT(used, routing.used), FIELD_AT(renormalize, routing.renormalize),
      FIELD_AT(scale, routing.scale), FIELD_AT(gating, routing.gating),
      FIELD_AT(selection_bias, routing.bias), FIELD_AT(groups, routing.groups),
      FIELD_AT(groups_used, routing.groups_used), FIELD(shared_gate), FIELD(shared_up),
      FIELD(shared_down), FIELD(shared_score), FIELD(latent_down), FIELD(latent_up),
      FIELD(shared_activation), FIELD(limit), FIELD(shared_limit), FIELD(weight_on_input),
      FIELD(router_norm), FIELD(post_norm))
      .def_prop_rw("gate_up", nullptr,
                   [](LayerBuilder<ExpertLayer>& builder, const PyLinear& both) {
                     ExpertLayer& layer = builder.layer;
                     std::tie(layer.gate, layer.gate_bias) = builder.convert(both);
                     layer.up = layer.gate;
                     layer.merged_rows = layer.gate.rows;
                     layer.gate.rows = layer.up.rows = layer.merged_rows / 2;
                     layer.up.data += layer.gate.rows * layer.up.stride();
                     if (layer.gate_bias) layer.up_bias = layer.gate_bias + layer.gate.rows;
                   })
      .def_prop_rw("store", nullptr, [](LayerBuilder<ExpertLayer>& builder, const Weight& any) {
        builder.layer.store = any.store.get();
        builder.layer.store_layer = any.layer;
      });
  nb::class_<HeadLayer>(m, "Head")
      .def("__init__",
           [](HeadLayer* self, const PyNorm& norm, const Weight& output) {
             LayerBuilder<Head> builder;
             const Norm made = builder.convert(norm);
             new (self) HeadLayer(made, builder.vectors, output);
           })
      .def("run", &HeadLayer::run);
}

mx::array pick_token(const mx::array& logits, float temperature, int64_t top_k, float top_p,
                     float min_p, double uniform) {
  const int64_t n = static_cast<int64_t>(logits.size());
  const Drawing how{temperature, top_k, top_p, min_p};
  return launch("Pick", {logits}, {{{}, mx::int32}},
                [n, how, uniform](const Sources& in, const Targets& out) {
                  *static_cast<int32_t*>(out[0]) =
                      pick(static_cast<const float*>(in[0]), n, how, uniform);
                })[0];
}

// Id, name, weights per block and bytes per block for each type.
std::vector<std::tuple<int, std::string, int64_t, int64_t>> block_types() {
  std::vector<std::tuple<int, std::string, int64_t, int64_t>> types;
  for (const BlockType& type : BLOCK_TYPES)
    types.emplace_back(static_cast<int>(type.type), type.name, type.weights, type.bytes);
  return types;
}

// Names of the instruction sets that this processor supports, as for use_isa.
std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const isa::Isa isa : isa::ALL)
    if (isa::supported(isa)) names.emplace_back(isa::id(isa));
  return names;
}

void use_isa(const std::optional<std::string>& id) {
  const std::lock_guard<std::mutex> lock(shared().mutex);  // a running task keeps its kernels
  isa::Isa wanted = isa::best();
  for (const isa::Isa isa : isa::ALL)
    if (id && *id == isa::id(isa)) wanted = isa;
  isa::force(wanted);
}

void set_threads(int threads) {
  const std::lock_guard<std::mutex> lock(shared().mutex);  // a running task keeps its threads
  Pool::shared().set_threads(threads);
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // a model may exist until the program ends
  m.def("block_types", &block_types);
  m.def("isa", [] { return isa::name(isa::current()); });
  m.def("isas", &isas);
  m.def("use_isa", &use_isa, nb::arg("id").none(), nb::call_guard<nb::gil_scoped_release>());
  m.def("set_threads", &set_threads, nb::call_guard<nb::gil_scoped_release>());
  nb::class_<Weight>(m, "Weight")
      .def(
          "__init__",
          [](Weight* self, nb::object buffer, int type, int64_t experts, int64_t rows, int64_t cols,
             const std::optional<std::vector<float>>& scales) {
            new (self) Weight(make_weight(std::move(buffer), type, experts, rows, cols, scales));
          },
          nb::arg("buffer"), nb::arg("type"), nb::arg("experts"), nb::arg("rows"), nb::arg("cols"),
          nb::arg("scales") = nb::none())
      .def("__init__",
           [](Weight* self, const std::shared_ptr<ExpertStore>& store, int layer, int part,
              int type, int64_t experts, int64_t rows, int64_t cols,
              const std::optional<std::vector<float>>& scales) {
             new (self) Weight(streamed_weight(store, layer, part, static_cast<Type>(type), experts,
                                               rows, cols, scales));
           })
      .def("rows", [](const Weight& self, int64_t begin, int64_t end) {
        if (self.experts != 1 || begin < 0 || begin > end || end > self.rows)
          throw nb::value_error("these are not rows of a matrix");
        Weight part = self;
        part.data += begin * row_bytes(self.type, self.cols);
        part.rows = end - begin;
        return part;
      });
  bind_store(m);
  m.def("matmul", nb::overload_cast<const mx::array&, const Weight&>(&matmul));
  m.def("gather_matmul", &gather_matmul);
  m.def("rows", &rows);
  m.def("convolve", &convolve_task);
  m.def("scan", &scan_task);
  m.def("gated_norm", &gated_norm_task);
  m.def("latent_attention", &latent_attention_task);
  m.def("pick", &pick_token);
  nb::class_<Watch>(m, "Watch")
      .def(nb::init<const Blocks&>())
      .def_prop_ro("lost", [](const Watch& self) { return lost(self.number); });
  m.def("set_prompt", [](bool prompt) { prompt_step() = prompt; });
  m.def("block_tokens", [] { return BLOCK_TOKENS; });
  m.def("ready", [](const mx::array& x) { return x.is_available(); });
  bind_caches(m);
  bind_layers(m);
}
