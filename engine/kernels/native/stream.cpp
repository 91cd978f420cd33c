// Bind the store of experts.
#include "stream.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <string>
#include <thread>
#include <tuple>

namespace conifer {

namespace nb = nanobind;

namespace {

using PySource =
    std::tuple<int64_t, std::vector<int>, std::vector<int64_t>>;  // bytes, files, offsets
using PyLayer = std::tuple<int, std::vector<PySource>>;           // kind, parts

std::shared_ptr<ExpertStore> make_store(const std::vector<std::string>& files,
                                        const std::vector<PyLayer>& layers,
                                        const std::vector<std::tuple<int64_t, int64_t>>& kinds,
                                        int window, int64_t window_bytes, int readers) {
  store::Shape shape{files, {}, {}, window, window_bytes, readers};
  for (const auto& [bytes, count] : kinds) shape.kinds.push_back({bytes, count});
  for (const auto& [kind, parts] : layers) {
    store::LayerSource& layer = shape.layers.emplace_back();
    layer.kind = kind;
    for (size_t part = 0; part < store::PARTS; ++part) {
      const auto& [bytes, numbers, offsets] = parts.at(part);
      layer.parts[part].bytes = bytes;
      for (size_t i = 0; i < offsets.size(); ++i)
        layer.parts[part].places.push_back({numbers.at(i), offsets[i]});
    }
  }
  return std::make_shared<ExpertStore>(shape);
}

// Make reads slow, short or failing, for tests. delay_s: before each read. most: bytes that one
// read returns, whole pages; 0: all. fails_after: reads before all others fail; -1: none does.
void disturb(ExpertStore& store, double delay_s, int64_t most, int64_t fails_after) {
  auto left = std::make_shared<std::atomic<int64_t>>(fails_after);
  store.replace_reader([=](int file, void* to, size_t bytes, off_t at) -> ssize_t {
    std::this_thread::sleep_for(std::chrono::duration<double>(delay_s));
    if (fails_after >= 0 && left->fetch_sub(1) <= 0) {
      errno = EIO;
      return -1;
    }
    return pread(file, to, most ? std::min(bytes, static_cast<size_t>(most)) : bytes, at);
  });
}

// What failed: an errno or -1 for a file that shrank, layer, expert, part, offset in the file.
using PyFailure = std::tuple<int, int, int, int, int64_t>;

std::optional<PyFailure> failure(const ExpertStore& store) {
  const store::Failure found = store.failure();
  if (!found.error) return std::nullopt;
  return PyFailure{found.error, found.layer, found.expert, found.part, found.offset};
}

}  // namespace

Weight streamed_weight(const std::shared_ptr<ExpertStore>& store, int layer, int part, Type type,
                       int64_t experts, int64_t rows, int64_t cols,
                       const std::optional<std::vector<float>>& scales) {
  static const uint8_t somewhere = 0;  // null would say that there is no matrix
  return {nullptr,
          &somewhere,
          type,
          experts,
          rows,
          cols,
          scales ? std::make_shared<const std::vector<float>>(*scales) : nullptr,
          store,
          layer,
          part};
}

void bind_store(nb::module_& m) {
  nb::class_<ExpertStore>(m, "ExpertStore")
      .def(nb::new_(&make_store))
      .def("stop", &ExpertStore::stop)
      .def("resume", &ExpertStore::resume)
      .def("disturb", &disturb)
      .def_prop_ro("begun", &ExpertStore::begun)
      .def("wait", &ExpertStore::wait_run, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("failure", &failure)
      .def_prop_ro("held", &ExpertStore::held)
      .def_prop_ro("held_bytes", &ExpertStore::held_bytes)
      .def_prop_ro("stats", [](const ExpertStore& self) {
        const store::Stats now = self.stats();
        return std::tuple{now.hits,    now.misses,         now.bytes_read, now.prompt_bytes_read,
                          now.wait_ns, now.prompt_wait_ns, now.distances};
      });
}

}  // namespace conifer
