// Tests the store of experts: what it returns is what the files hold, whatever is chosen, wherever
// it lies, and however reads go wrong.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "store/store.h"
#include "threads/pool.h"

using namespace conifer::store;
using conifer::threads::Pool;

namespace {

int checks = 0, failures = 0;

void expect(bool good, const std::string& what) {
  ++checks;
  if (good) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

constexpr int LAYERS = 3, EXPERTS = 12, USED = 4, THREADS = 2;
constexpr std::array<int64_t, PARTS> BYTES{5000, 5000, 2500000};  // the last: several reads

// Two files. The first has each layer's stacks, at odd offsets; the second the experts of layer 2.
struct Model {
  std::vector<std::string> files;
  std::vector<std::vector<uint8_t>> contents;
  Shape shape;

  explicit Model(int64_t slots, int window = 3) {
    std::mt19937 random(1);
    contents.resize(2);
    for (int layer = 0; layer < LAYERS; ++layer) {
      LayerSource& source = shape.layers.emplace_back();
      std::vector<uint8_t>& data = contents[layer == 2];
      for (size_t part = 0; part < PARTS; ++part) {
        source.parts[part].bytes = BYTES[part];
        for (int e = 0; e < EXPERTS; ++e) {
          data.resize(data.size() + (part == 0 && e == 0 ? 96 : 0));
          source.parts[part].places.push_back({layer == 2, int64_t(data.size())});
          for (int64_t i = 0; i < BYTES[part]; ++i) data.push_back(uint8_t(random()));
        }
      }
    }
    for (const std::vector<uint8_t>& data : contents) {
      std::string name = std::filesystem::temp_directory_path() / "store_testXXXXXX";
      const int file = mkstemp(name.data());
      expect(write(file, data.data(), data.size()) == ssize_t(data.size()), "the file is written");
      fsync(file);
      close(file);
      files.emplace_back(name);
    }
    int64_t bytes = 0, inputs = 0;
    for (size_t part = 0; part < PARTS; ++part) {
      const int64_t most = page_end(BYTES[part]) + PAGE;
      bytes += most;
      if (part != DOWN) inputs += most;
    }
    shape.files = files;
    shape.kinds = {{bytes, slots}};
    shape.window = window;
    shape.window_bytes = std::max(inputs, page_end(BYTES[DOWN]) + PAGE);
    shape.readers = 4;
  }
  ~Model() {
    for (const std::string& file : files) unlink(file.c_str());
  }

  bool same(int layer, int expert, int part, const uint8_t* data) const {
    const Place& place = shape.layers[size_t(layer)].parts[size_t(part)].places[size_t(expert)];
    const uint8_t* right = contents[size_t(place.file)].data() + place.offset;
    return std::memcmp(data, right, size_t(BYTES[size_t(part)])) == 0;
  }
};

// Decode one token. Returns false if stopped; wrong: counts wrong bytes.
bool decode(const Model& model, ExpertStore& store, Pool& pool, int layer,
            const std::vector<int32_t>& ids, std::atomic<int>& wrong) {
  std::atomic<bool> complete{true};
  pool.run([&](int thread, int) {
    if (thread == 0) store.choose(layer, ids.data(), int64_t(ids.size()));
    pool.barrier();
    size_t seen = 0;
    const auto check = [&](unsigned parts) {
      seen = 0;
      return store.each_chosen(parts, thread, [&](int64_t j, const Addresses& at) {
        ++seen;
        for (int part = 0; part < PARTS; ++part)
          if (parts >> part & 1 && !model.same(layer, ids[size_t(j)], part, at[size_t(part)]))
            ++wrong;
      });
    };
    if (!check(INPUTS) || seen != ids.size()) complete = false;
    pool.barrier();
    if (!check(OUTPUT) || seen != ids.size()) complete = false;
  });
  store.finish();
  return complete;
}

bool prompt(const Model& model, ExpertStore& store, Pool& pool, int layer,
            const std::vector<int32_t>& ids, std::atomic<int>& wrong) {
  std::vector<int32_t> last(ids.size());
  std::iota(last.begin(), last.end(), 0);
  std::atomic<bool> complete{true};
  pool.run([&](int thread, int threads) {
    if (thread == 0)
      store.plan(layer, ids.data(), last.data(), int64_t(ids.size()), {INPUTS, OUTPUT}, threads);
    pool.barrier();
    for (int stage = 0; stage < 2; ++stage) {
      int64_t next = 0;
      const unsigned parts = stage ? OUTPUT : INPUTS;
      const bool whole = store.each_planned(stage, thread, [&](int64_t i, const Addresses& at) {
        if (i != next++) ++wrong;
        for (int part = 0; part < PARTS; ++part)
          if (parts >> part & 1 && !model.same(layer, ids[size_t(i)], part, at[size_t(part)]))
            ++wrong;
      });
      if (!whole) complete = false;
      pool.barrier();
    }
  });
  store.finish();
  return complete;
}

std::vector<int32_t> some(std::mt19937& random, int count) {
  std::vector<int32_t> all(EXPERTS);
  std::iota(all.begin(), all.end(), 0);
  std::shuffle(all.begin(), all.end(), random);
  all.resize(size_t(count));
  return all;
}

void test_contents() {
  for (const int64_t slots : {USED, 9, LAYERS * EXPERTS}) {
    const Model model(slots);
    ExpertStore store(model.shape);
    Pool pool(THREADS);
    std::mt19937 random(2);
    std::atomic<int> wrong{0};
    bool whole = true;
    for (int step = 0; step < 60; ++step) {
      const int layer = step % LAYERS;
      std::vector<int32_t> ids = some(random, step % 7 == 3 ? EXPERTS - 2 : USED);
      if (step % 7 == 3) {
        std::sort(ids.begin(), ids.end());
        whole &= prompt(model, store, pool, layer, ids, wrong);
      } else {
        whole &= decode(model, store, pool, layer, ids, wrong);
      }
    }
    expect(whole && wrong == 0, "contents with " + std::to_string(slots) + " slots");
    const Stats stats = store.stats();
    expect(store.held() <= slots, "no more experts than slots");
    const int64_t counted = std::accumulate(stats.distances.begin(), stats.distances.end(), 0LL);
    expect(counted == stats.hits + stats.misses, "each choice has a distance");
    expect(slots < LAYERS * EXPERTS || stats.misses < LAYERS * EXPERTS, "all fit: read once");
  }
}

// The least recently used expert makes room, and prompts push nothing out.
void test_order() {
  const Model model(6);
  ExpertStore store(model.shape);
  Pool pool(THREADS);
  std::atomic<int> wrong{0};
  const auto misses = [&](int layer, std::vector<int32_t> ids) {
    const int64_t before = store.stats().misses;
    decode(model, store, pool, layer, ids, wrong);
    return store.stats().misses - before;
  };
  expect(misses(0, {0, 1, 2, 3}) == 4, "all are new");
  expect(misses(1, {0, 1}) == 2, "another layer's are others");
  expect(misses(0, {0, 1, 2, 3}) == 0, "all are known");
  prompt(model, store, pool, 2, {0, 1, 2, 3, 4, 5, 6, 7}, wrong);
  expect(misses(0, {0, 1, 2, 3}) == 0, "a prompt pushed nothing out");
  expect(misses(1, {5}) == 1 && misses(1, {1}) == 0 && misses(1, {0}) == 1, "the oldest left");
  expect(wrong == 0, "contents while experts leave");
  const std::vector<int64_t> distances = store.stats().distances;
  expect(distances.back() == 7 && distances[3] == 8, "distances of reuse");
}

void test_failures() {
  const Model model(USED + 1);
  Pool pool(THREADS);
  std::atomic<int> wrong{0};
  {
    ExpertStore store(model.shape);
    std::atomic<int> left{6};
    store.replace_reader([&](int file, void* to, size_t bytes, off_t at) -> ssize_t {
      if (left.fetch_sub(1) == 0) {
        errno = EIO;
        return -1;
      }
      return pread(file, to, bytes, at);
    });
    expect(!decode(model, store, pool, 1, {3, 4, 5, 6}, wrong), "a failed read ends the step");
    const Failure failure = store.failure();
    expect(failure.error == EIO && failure.layer == 1 && failure.offset > 0, "it says where");
    store.resume();
    expect(decode(model, store, pool, 1, {3, 4, 5, 6}, wrong), "the next step reads again");
    left = 3;
    expect(!prompt(model, store, pool, 0, {0, 1, 2, 3, 4, 5, 6}, wrong), "a prompt ends as well");
    store.resume();
    expect(prompt(model, store, pool, 0, {0, 1, 2, 3, 4, 5, 6}, wrong), "and reads again");
  }
  {
    ExpertStore store(model.shape);
    store.replace_reader([](int file, void* to, size_t bytes, off_t at) {
      return pread(file, to, std::min<size_t>(bytes, 2 * PAGE), at);
    });
    expect(decode(model, store, pool, 0, {3, 4, 5, 6}, wrong), "short reads go on");
    expect(prompt(model, store, pool, 2, {1, 2, 3, 9}, wrong), "short reads of a prompt go on");
  }
  {
    ExpertStore store(model.shape);
    expect(decode(model, store, pool, 2, {0, 1}, wrong), "before the file shrinks");
    expect(truncate(model.files[1].c_str(), 200000) == 0, "the file shrinks");
    expect(!decode(model, store, pool, 2, {2, 3}, wrong), "a file that shrank ends the step");
    expect(store.failure().error == File::SHRANK, "it says that it shrank");
    store.resume();
    expect(decode(model, store, pool, 2, {0, 1}, wrong), "what is in memory stays");
  }
  expect(wrong == 0, "contents while reads fail");
}

// Stopping returns at once, while reads hang; the memory that they write to is not used again.
void test_stop() {
  using Clock = std::chrono::steady_clock;
  const Model model(USED);
  Pool pool(THREADS);
  std::atomic<int> wrong{0};
  std::atomic<bool> hangs{true};
  ExpertStore store(model.shape);
  store.replace_reader([&](int file, void* to, size_t bytes, off_t at) {
    if (hangs) std::this_thread::sleep_for(std::chrono::milliseconds(400));
    return pread(file, to, bytes, at);
  });
  for (const bool prompts : {false, true}) {
    hangs = true;
    std::thread stopper([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      store.stop();
    });
    const auto start = Clock::now();
    expect(!(prompts ? prompt : decode)(model, store, pool, 0, {0, 1, 2, 3}, wrong), "it stops");
    expect(Clock::now() - start < std::chrono::milliseconds(200), "it stops at once");
    stopper.join();
    store.resume();
    hangs = false;
    expect(decode(model, store, pool, 1, {4, 5, 6, 7}, wrong), "the next step waits for slots");
    expect(prompt(model, store, pool, 0, {0, 1, 2, 3, 8}, wrong), "and for buffers");
  }
  expect(wrong == 0, "contents after stops");
}

}  // namespace

int main() {
  test_contents();
  test_order();
  test_failures();
  test_stop();
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures ? 1 : 0;
}
